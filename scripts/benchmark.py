"""Measures; each subject prints a table of its own.

scripts/benchmark.py load [--devices=8] [--layers=12]    memory while a random sharded checkpoint is read
"""

import os
import tempfile
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("layers", 12, "load: layers of each side; 12 make a checkpoint of 1 GB.")
flags.DEFINE_integer("devices", 1, "load: virtual CPU devices, over which the parameters are split (fsdp).")


def load() -> None:
    if FLAGS.devices > 1:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={FLAGS.devices}"
    from seq2seq_jax.lab.loading import measure_load, write_random_checkpoint
    from seq2seq_jax.parallel.mesh import make_mesh

    with tempfile.TemporaryDirectory() as directory:
        child = os.fork()  # so that what writing takes does not count
        if child == 0:
            write_random_checkpoint(Path(directory), FLAGS.layers)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError("the checkpoint could not be written")
        figures = measure_load(Path(directory), make_mesh(fsdp=FLAGS.devices) if FLAGS.devices > 1 else None)
    megabytes = lambda count: f"{count / 1e6:.0f}"
    bound = figures.tree + figures.largest + figures.tensor
    print("| devices | tree MB | + largest parameter + one tensor MB | peak MB | each device MB | seconds |")
    print("|---|---|---|---|---|---|")
    row = [FLAGS.devices, *map(megabytes, (figures.tree, bound, figures.peak, max(figures.devices)))]
    print("| " + " | ".join(map(str, [*row, f"{figures.seconds:.1f}"])) + " |")


SUBJECTS = {"load": load}


def main(argv):
    if len(argv) != 2 or argv[1] not in SUBJECTS:
        raise app.UsageError(f"give one subject of: {', '.join(SUBJECTS)}")
    SUBJECTS[argv[1]]()


if __name__ == "__main__":
    app.run(main)
