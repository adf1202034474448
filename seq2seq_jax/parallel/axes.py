"""The table that says where a named axis lives on a mesh: one place for parameters and activations alike."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

MESH_AXES = ("replica", "data", "fsdp", "tensor")

# Logical axis -> the mesh axes that split it. Axes that a mesh lacks drop out.
LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "data", "fsdp"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    # Axes that no mesh splits: a kernel's other width, norms, and what is small.
    "layers": (),
    "head_dim": (),
    "position": (),
    "length": (),
    "norm": (),
}


def partition_spec(axes: Sequence[str | None], mesh) -> PartitionSpec:
    """`axes` (one logical name, or None, per dimension) as a PartitionSpec for `mesh`.

    Raises:
      ValueError: for a name that the table lacks.
    """
    entries = []
    for axis in axes:
        if axis is not None and axis not in LOGICAL_AXIS_RULES:
            raise ValueError(
                f"logical axis {axis!r} is not in LOGICAL_AXIS_RULES of parallel/axes.py; add a row for it"
            )
        names = tuple(name for name in LOGICAL_AXIS_RULES.get(axis, ()) if mesh.shape.get(name, 1) > 1)
        entries.append(names if len(names) > 1 else (names[0] if names else None))
    return PartitionSpec(*entries)


def current_mesh():
    """The mesh of `jax.set_mesh`, or None: there is none, or the code runs on each of its devices by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types)
    return None if mesh.empty or manual else mesh


def fitting_spec(shape: Sequence[int], axes: Sequence[str | None], mesh) -> PartitionSpec:
    """`partition_spec` for an array; a dimension that its mesh axes do not divide (a last small batch) stays whole."""
    spec = partition_spec(axes, mesh)
    return PartitionSpec(*(entry if size % num_shards(entry, mesh) == 0 else None for size, entry in zip(shape, spec)))


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to keep `x` split by the table, as far as that fits, under `jax.set_mesh`; elsewhere returns
    `x`."""
    mesh = current_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fitting_spec(x.shape, axes, mesh)))


def num_shards(entry, mesh) -> int:
    """Into how many parts one entry of a PartitionSpec splits its dimension."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    count = 1
    for name in names:
        count *= mesh.shape[name]
    return count
