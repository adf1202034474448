"""Device meshes: `replica` and `data` split the batch, `fsdp` batch and weights, `tensor` heads and vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.parallel.axes import MESH_AXES, partition_spec

# Axes that may go over slices, first those that talk least; tensor talks in every layer and stays in a slice.
OVER_SLICES = ("replica", "data", "fsdp")


def make_mesh(*, replica: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh with Auto axes over `devices` (default: all); one size may be -1: what is left.

    Use it as `with jax.set_mesh(mesh):` around compiled calls, and as `from_pretrained(..., mesh=mesh)`. Where the
    devices belong to several slices (TPU slices; hosts of GPUs), `replica` goes over slices, else `data`, else `fsdp`.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or do not divide over their slices.
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
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) > 1:
        return Mesh(_over_slices(sizes, devices, slices), MESH_AXES, axis_types=auto)
    if len(devices) < jax.device_count():
        return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=auto)
    return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)


def _over_slices(sizes: Mapping[str, int], devices: Sequence, slices: Counter) -> np.ndarray:
    """The devices in the mesh's shape; only the axes that `slice_shapes` says go from slice to slice."""
    if len(set(slices.values())) > 1:
        held = ", ".join(f"slice {index} has {count}" for index, count in sorted(slices.items()))
        raise ValueError(f"a mesh needs as many devices of each slice, and {held}; give devices= of equal slices")
    inside, across = slice_shapes(sizes, len(slices))
    return create_hybrid_device_mesh(inside, across, devices)


def slice_shapes(sizes: Mapping[str, int], slices: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The mesh's shape inside a slice, and over `slices` of them; axis by axis they multiply to its size.

    Raises:
      ValueError: if replica, data and fsdp together do not take the slices up.
    """
    across, left = dict.fromkeys(sizes, 1), slices
    for axis in OVER_SLICES:
        across[axis] = math.gcd(sizes[axis], left)
        left //= across[axis]
    if left > 1:
        product = math.prod(sizes[axis] for axis in OVER_SLICES)
        raise ValueError(
            f"mesh sizes {dict(sizes)} do not go over {slices} slices: replica x data x fsdp is {product}, and must be"
            f" a multiple of {slices} (tensor stays in a slice); give replica={slices}, or devices= of one slice"
        )
    return tuple(sizes[axis] // across[axis] for axis in sizes), tuple(across.values())


def state_shardings(state: Any, params: Any) -> Any:
    """Where an optimizer's state lives: what belongs to a parameter as the parameter does, the rest on all devices.

    A leaf belongs to the parameter whose path is a part of its own, if it has the same shape.

    Args:
      state: a tree of arrays or shapes, as tx.init makes it of `params`.
      params: arrays or jax.ShapeDtypeStructs with NamedShardings.
    """
    placed = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    replicated = NamedSharding(next(iter(placed.values())).sharding.mesh, PartitionSpec())

    def sharding(path, leaf):
        keys = _keys(path)
        parts = (keys[i:j] for i in range(len(keys)) for j in range(i + 1, len(keys) + 1))
        owner = placed.get(max((part for part in parts if part in placed), key=len, default=None))
        return owner.sharding if owner is not None and owner.shape == leaf.shape else replicated

    return jax.tree_util.tree_map_with_path(sharding, state)


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


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
      rows: of the global batch; None: the arrays hold all of it.

    Raises:
      ValueError: if the batch does not divide.
    """
    out = {}
    for name, array in batch.items():
        array = np.asarray(array)
        total = array.shape[0] if rows is None else rows
        held = local_rows(mesh, total)
        place = np.arange(total)
        if len(array) < total:
            place[held] = np.arange(len(held))
        pick = lambda index, a=array, p=place: a[p[index[0]]]
        sharding = batch_sharding(mesh, array.ndim)
        out[name] = jax.make_array_from_callback((total, *array.shape[1:]), sharding, pick)
    return out
