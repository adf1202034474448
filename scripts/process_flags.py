"""Flags that the scripts have in common: the processes that work together, and where compiled programs are kept."""

import jax
from absl import app, flags

from seq2seq_jax.parallel import multihost

FLAGS = flags.FLAGS
flags.DEFINE_bool(
    "distributed",
    False,
    "Start together with other processes (jax.distributed). Slurm, Open MPI 4, Cloud TPU (GCE, GKE) and Kubernetes"
    " (indexed Jobs, with the Python package kubernetes) say by themselves who is who; elsewhere give the next three.",
)
flags.DEFINE_string("coordinator", None, "host:port of process 0.")
flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
flags.DEFINE_string("compile_cache", None, "A directory that keeps what took over a second to compile.")


def start() -> None:
    """Does what the flags say, before anything else touches a device."""
    if FLAGS.compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", FLAGS.compile_cache)
    if FLAGS.distributed:
        multihost.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    elif FLAGS.coordinator is not None:
        raise app.UsageError("--coordinator is for --distributed; give both or neither")
