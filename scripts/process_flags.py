"""Flags of the scripts that compute: the processes that work together, and where compiled programs are kept."""

from absl import app, flags

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


def start(*, shares: bool = False) -> None:
    """Does what the flags say, before anything else touches a device.

    Args:
      shares: the script gives --num_processes and --process_id a meaning without --distributed too.

    Raises:
      app.UsageError: for a flag of --distributed without it.
    """
    import jax

    from seq2seq_jax.parallel import multihost

    if FLAGS.compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", FLAGS.compile_cache)
    if FLAGS.distributed:
        multihost.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        return
    # Such processes would each take itself for the only one, and all would write the same files.
    for name in ("coordinator",) if shares else ("coordinator", "num_processes", "process_id"):
        if FLAGS[name].value is not None:
            raise app.UsageError(f"--{name}={FLAGS[name].value} is for --distributed; give both or neither")
