"""Flags of the scripts that use a pair: how its weights are split over the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

FLAGS = flags.FLAGS
flags.DEFINE_integer("fsdp", 1, "Devices that split the width of the weights, and the batch.", lower_bound=1)
flags.DEFINE_integer("tensor", 1, "Devices that split heads, MLP and vocabulary.", lower_bound=1)


def mesh_over(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of the sizes that the flags give; `data` takes what is left of the devices.

    Raises:
      app.UsageError: if the devices do not divide by the sizes.
    """
    from seq2seq_jax.parallel.mesh import make_mesh

    count, together = len(devices), FLAGS.fsdp * FLAGS.tensor
    if count % together:
        legal = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise app.UsageError(
            f"--fsdp={FLAGS.fsdp} --tensor={FLAGS.tensor} make groups of {together} devices, and there are {count};"
            f" give sizes whose product is among {legal}"
        )
    return make_mesh(data=-1, fsdp=FLAGS.fsdp, tensor=FLAGS.tensor, devices=devices)
