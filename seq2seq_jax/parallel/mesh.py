"""Device meshes: `replica` and `data` split the batch, `fsdp` batch and weights, `tensor` heads and vocabulary."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from seq2seq_jax.parallel.rules import MESH_AXES, partition_spec


def make_mesh(*, replica: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh with Auto axes over `devices` (default: all); one size may be -1: what is left.

    Use it as `with jax.set_mesh(mesh):` around compiled calls, and as `from_pretrained(..., mesh=mesh)`.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(MESH_AXES, (replica, data, fsdp, tensor)))
    wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
    free = [name for name, size in sizes.items() if size == -1]
    if wrong or len(free) > 1:
        raise ValueError(f"mesh sizes are {sizes}; each is at least 1, and one of them may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh sizes {sizes} need {fixed} devices{' or a multiple' if free else ''}, and there are {len(devices)};"
            " change a size, or give devices="
        )
    # Under Explicit axes a sharding constraint is an assertion; the rule table wants it to be a request.
    shape, auto = tuple(sizes.values()), (AxisType.Auto,) * len(MESH_AXES)
    if devices is not None and len(devices) < jax.device_count():
        return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=auto)
    return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)


def batch_sharding(mesh: Mesh, ndim: int = 2) -> NamedSharding:
    """Where a batch [batch, ...] lives: its first axis over replica, data and fsdp."""
    return NamedSharding(mesh, partition_spec(("batch", *(None,) * (ndim - 1)), mesh))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in ("replica", "data", "fsdp"))


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Which rows of a batch of `rows` this process's devices hold, in order.

    Raises:
      ValueError: if the batch does not divide.
    """
    parts = batch_parts(mesh)
    if rows % parts:
        raise ValueError(
            f"a batch of {rows} does not divide: the mesh splits it {parts} ways (replica x data x fsdp); give a batch"
            f" that is a multiple of {parts}"
        )
    held = batch_sharding(mesh, 1).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh, *, rows: int | None = None) -> dict[str, jax.Array]:
    """Host arrays as arrays split over `mesh`.

    Args:
      batch: arrays [rows, ...], or of this process's rows only: [len(local_rows(mesh, rows)), ...].
      rows: in the whole batch; None: the arrays hold it whole.

    Raises:
      ValueError: if the batch does not divide.
    """
    out = {}
    for name, array in batch.items():
        array = np.asarray(array)
        whole = array.shape[0] if rows is None else rows
        held = local_rows(mesh, whole)
        place = np.arange(whole)
        if len(array) < whole:
            place[held] = np.arange(len(held))
        pick = lambda index, a=array, p=place: a[p[index[0]]]
        sharding = batch_sharding(mesh, array.ndim)
        out[name] = jax.make_array_from_callback((whole, *array.shape[1:]), sharding, pick)
    return out
