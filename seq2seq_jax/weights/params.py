"""The stored parameter tree: its shapes, logical axes and shardings, and which parameters are tied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from seq2seq_jax.models import ties
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.stack import layer_slot
from seq2seq_jax.parallel.axes import partition_spec, shards

# Parameters whose first axis is the vocabulary, which a mesh may pad.
VOCAB_PARAMS = (ties.EMBEDDING, "head/kernel", "head/bias")


class ParamSpec(NamedTuple):
    """One stored array.

    Attributes:
      shape, axes: its shape and logical axes.
      paths: the parameter of each layer that it holds ("encoder/layers/layers_0/..."); its own path outside of layers.
      stacked: whether the first axis counts `paths`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    paths: tuple[str, ...]
    stacked: bool


def param_specs(model: EncoderDecoder) -> dict[str, ParamSpec]:
    """Path of each stored array -> what it is. Tied parameters are stored once."""
    out = {}
    slots = {}
    for role, config in (("encoder", model.config.encoder), ("decoder", model.config.decoder)):
        for i in range(config.stored_layers):
            slot, row = layer_slot(config, i)
            slots.setdefault(f"{role}/layers/{slot}", []).append((i, row is not None))
    for path, box in flatten_dict(model.parameter_shapes(), sep="/").items():
        shape, axes = nn.unbox(box).shape, tuple(box.names)
        paths, stacked = (path,), False
        for slot, members in slots.items():
            if path.startswith(slot + "/"):
                role, rest = slot.split("/")[0], path.removeprefix(slot)
                paths = tuple(f"{role}/layers/layers_{i}{rest}" for i, _ in members)
                stacked = members[0][1]
        out[path] = ParamSpec(shape, axes, paths, stacked)
    return out


def tied_paths(model: EncoderDecoder, specs: Mapping[str, ParamSpec]) -> dict[str, str]:
    """Path of a tied parameter -> path of the parameter that is stored for it, layer by layer.

    Raises:
      ValueError: if a tie joins different numbers of layers.
    """
    all_specs = untied_specs(model)
    stored = unflatten_dict({k: np.array(spec.paths, dtype=object) for k, spec in specs.items()}, sep="/")
    filled = flatten_dict(ties.fill(stored, model.aliases), sep="/")
    out = {}
    for path, sources in filled.items():
        if path not in specs:
            targets = all_specs[path].paths
            if len(targets) != len(sources):
                raise ValueError(
                    f"a tie gives {len(sources)} layers to {path!r}, which has {len(targets)}; give layers="
                )
            out.update(zip(targets, sources))
    return out


def untied_specs(model: EncoderDecoder) -> dict[str, ParamSpec]:
    """`param_specs` of the model without ties: every parameter has an array of its own."""
    decoder = replace(model.config.decoder, tie_head=False)
    return param_specs(model.clone(config=replace(model.config, tie_encoder_decoder=False, decoder=decoder)))


def place(rows: Iterator[np.ndarray], spec: ParamSpec, mesh: Mesh | None, dtype: Any) -> jax.Array:
    """Rows to one array in `dtype`, the vocabulary padded with zeros, on the default device or split over `mesh`.

    Args:
      rows: the arrays of `spec.paths`. They come one by one, so that the host holds one tensor beside the array.
    """
    full = np.zeros(spec.shape, dtype)
    for i, row in enumerate(rows):
        target = full[i] if spec.stacked else full
        target[: row.shape[0]] = row
    if mesh is None:
        return jax.block_until_ready(jnp.array(full, copy=True))
    return jax.make_array_from_callback(spec.shape, param_sharding(spec, mesh), lambda index: full[index])


def param_sharding(spec: ParamSpec, mesh: Mesh) -> NamedSharding:
    """Where a parameter lives on `mesh`.

    Raises:
      ValueError: if the mesh does not divide it; names sizes that would.
    """
    partition = partition_spec(spec.axes, mesh)
    for axis, size, entry in zip(spec.axes, spec.shape, partition):
        count = shards(entry, mesh)
        if size % count:
            legal = ", ".join(str(n) for n in range(1, min(size, 64) + 1) if size % n == 0)
            raise ValueError(
                f"{spec.paths[0]}: its {axis!r} axis of {size} cannot be split over {count} devices of the mesh axis"
                f" {entry!r}; give that mesh axis a size among {legal}"
            )
    return NamedSharding(mesh, partition)


def abstract_param(spec: ParamSpec, mesh: Mesh | None, dtype: Any) -> jax.ShapeDtypeStruct:
    """A parameter's shape, dtype and sharding (without a mesh: the first device)."""
    sharding = SingleDeviceSharding(jax.devices()[0]) if mesh is None else param_sharding(spec, mesh)
    return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)


def abstract_params(model: EncoderDecoder, mesh: Mesh | None, dtype: Any) -> dict[str, Any]:
    """The stored tree as ShapeDtypeStructs; of a model in decoding form, that form's.

    Raises:
      ValueError: if the mesh does not divide a parameter.
    """
    return unflatten_dict({p: abstract_param(spec, mesh, dtype) for p, spec in param_specs(model).items()}, sep="/")
