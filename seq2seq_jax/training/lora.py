"""Low-rank adapters (Hu et al. 2022) as plain parameters beside the others, under the top-level key "lora".

`add_adapters` adds them to the tree. `merge_adapters` returns the pair's own parameters with the adapters added to
their kernels: these are what the model, evaluation and export read.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.config import EncoderDecoderConfig, LoraConfig, nearest
from seq2seq_jax.training.parameter_names import (
    ADAPTERS,
    HEAD,
    kernel_inputs,
    layer_names,
    parameter_names,
    without_layer,
)


def add_adapters(
    params: Mapping[str, Any], config: LoraConfig, pair: EncoderDecoderConfig, *, seed: int
) -> dict[str, Any]:
    """`params` with adapters of config.targets: lora/<path of the kernel>/a [layers?, *inputs, rank], uniform within
    1 / sqrt(inputs) (as peft: torch.nn.Linear's), and b [layers?, rank, *outputs], zero, so that the pair begins
    unchanged. They are sharded as their kernel is.

    Raises:
      ValueError: for a target that no kernel matches, or only that of a head that is tied to the embeddings.
    """
    flat = flatten_dict(params, sep="/")
    kernels = {}
    for path, entry in parameter_names(pair, flat).items():
        stacked = not isinstance(entry, str)
        inputs = 1 if path == HEAD else kernel_inputs(path, flat[path].ndim - stacked)
        if inputs is not None:
            kernels[path] = (without_layer(layer_names(entry)[0]), stacked, inputs + stacked)
    _check_targets(config.targets, {name for name, _, _ in kernels.values()})
    adapters = {}
    for path, (name, stacked, middle) in kernels.items():
        if any(re.search(target, name) for target in config.targets):
            pairs = _adapter(path, flat[path], config.rank, stacked, middle, seed)
            adapters |= {f"{path}/{leaf}": value for leaf, value in zip("ab", pairs)}
    return {**params, ADAPTERS: unflatten_dict(adapters, sep="/")}


def _check_targets(targets: tuple[str, ...], known: set[str]) -> None:
    head = HEAD.replace("/", ".")
    for target in targets:
        if any(re.search(target, name) for name in known):
            continue
        if re.search(target, head):
            raise ValueError(
                f"lora.targets {target!r} matches {head} alone, and this head is tied: its kernel is the table of"
                " embeddings, which has no adapter; leave the target out"
            )
        raise ValueError(f"lora.targets {target!r} matches no kernel's name: {nearest(target, known)}")


def _adapter(path: str, kernel: jax.Array, rank: int, stacked: bool, middle: int, seed: int) -> Any:
    """a and b of one kernel, whose axes from `middle` on are outputs; the head's axes are reversed."""
    turn = -1 if path == HEAD else 1
    shape, layers = kernel.shape[::turn], kernel.shape[: int(stacked)]
    shapes = (*shape[:middle], rank), (*layers, rank, *shape[middle:])
    bound = 1.0 / math.sqrt(math.prod(shape[int(stacked) : middle]))
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))

    def make() -> tuple[jax.Array, jax.Array]:
        return jax.random.uniform(key, shapes[0], kernel.dtype, -bound, bound), jnp.zeros(shapes[1], kernel.dtype)

    sharding = getattr(kernel, "sharding", None)  # of one that is traced there is none
    if not isinstance(sharding, NamedSharding):
        return make()
    spec = (*sharding.spec, *(None,) * (kernel.ndim - len(sharding.spec)))[::turn]
    parts = (*spec[:middle], None), (*spec[: int(stacked)], None, *spec[middle:])
    return jax.jit(make, out_shardings=tuple(NamedSharding(sharding.mesh, PartitionSpec(*p)) for p in parts))()


def merge_adapters(params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The pair's own parameters, a kernel that has an adapter being kernel + alpha / rank * a b (the head's product is
    transposed). The gradient goes to the adapters alone."""
    flat = flatten_dict({name: tree for name, tree in params.items() if name != ADAPTERS}, sep="/")
    adapters = flatten_dict(params[ADAPTERS], sep="/")
    for path in {name.rpartition("/")[0] for name in adapters}:
        a, b, kernel = adapters[f"{path}/a"], adapters[f"{path}/b"], flat[path]
        layers = (0,) if a.ndim + b.ndim == kernel.ndim + 3 else ()  # both have the layer axis, and the rank
        product = jax.lax.dot_general(a, b, (((a.ndim - 1,), (len(layers),)), (layers, layers)))
        product = product.T if path == HEAD else product
        flat[path] = jax.lax.stop_gradient(kernel) + (config.alpha / config.rank) * product
    return unflatten_dict(flat, sep="/")


def merged_frozen(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of booleans like `merge_adapters(params)`: true but where a kernel has an adapter."""
    adapted = {name.rpartition("/")[0] for name in flatten_dict(params[ADAPTERS], sep="/")}
    own = flatten_dict({name: tree for name, tree in params.items() if name != ADAPTERS}, sep="/")
    return unflatten_dict({path: path not in adapted for path in own}, sep="/")
