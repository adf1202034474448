"""The stored parameter tree: its shapes, logical axes and shardings, and which parameters are tied."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from seq2seq_jax.config import EncoderDecoderConfig, TransformerConfig
from seq2seq_jax.models import ties
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.param_layouts import layer_location
from seq2seq_jax.parallel.axes import num_shards, partition_spec

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
    for path, box in flatten_dict(model.parameter_shapes(), sep="/").items():
        out[path] = ParamSpec(nn.unbox(box).shape, tuple(box.names), *layer_paths(model.config, path))
    return out


def layer_paths(config: EncoderDecoderConfig, path: str) -> tuple[tuple[str, ...], bool]:
    """The parameters that a stored array holds, layer by layer ("encoder/layers/layers_3/..."), and whether they are
    stacked along its first axis. An array outside the layers, or of one layer, has its own path alone."""
    role, _, rest = path.partition("/layers/")
    if not rest:
        return (path,), False
    subtrees = _layers_of_subtrees(getattr(config, role))
    subtree = next(subtree for subtree in subtrees if rest.startswith(f"{subtree}/"))
    layers, stacked = subtrees[subtree]
    return tuple(f"{role}/layers/layers_{i}{rest.removeprefix(subtree)}" for i in layers), stacked


@functools.lru_cache(maxsize=64)
def _layers_of_subtrees(config: TransformerConfig) -> dict[str, tuple[list[int], bool]]:
    """Subtree of the stack -> the layers that it holds, and whether they are stacked."""
    subtrees: dict[str, tuple[list[int], bool]] = {}
    for i in range(config.stored_layers):
        subtree, row = layer_location(config, i)
        subtrees.setdefault(subtree, ([], row is not None))[0].append(i)
    return subtrees


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
        count = num_shards(entry, mesh)
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
