"""Where a layer's parameters stand in the tree, and the forms of the tree: scanned for training, unrolled for decoding.

`stack_layers` and `unstack_layers` convert layers from one form to the other, `outputs_first` and `inputs_first` the
kernels of a decoder, `to_int8` the kernels of either side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.models.int8 import quantise


class ScanPlan(NamedTuple):
    """Layers [start, start + period * repeats) are scanned; the others stand alone."""

    start: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.repeats


@functools.lru_cache(maxsize=256)
def scan_plan(config: TransformerConfig) -> ScanPlan:
    """The plan that traces the fewest layers; repeats is 0 where a scan saves nothing, or layers are shared."""
    if config.shared_layers is not None:
        return ScanPlan(0, 1, 0)
    layers = [config.layer(i) for i in range(config.num_layers)]
    n, best, fewest = len(layers), ScanPlan(0, 1, 0), len(layers)
    for period in range(1, n // 2 + 1):
        for start in range(n - 2 * period + 1):
            repeats = 1
            while (stop := start + period * (repeats + 1)) <= n and layers[stop - period : stop] == layers[
                start : start + period
            ]:
                repeats += 1
            traced = n - period * (repeats - 1)
            if repeats > 1 and traced < fewest:
                best, fewest = ScanPlan(start, period, repeats), traced
    return best


def layer_location(config: TransformerConfig, index: int) -> tuple[str, int | None]:
    """Where layer `index` is stored: the subtree of the stack, and its row there (None: it stands alone)."""
    plan = scan_plan(config)
    if not plan.start <= index < plan.stop:
        return f"layers_{index}", None
    repeat, j = divmod(index - plan.start, plan.period)
    return f"stacked/block_{j}", repeat


def unstack_layers(config: TransformerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Stack parameters from the scanned form to one subtree per layer."""
    out = {}
    for i in range(config.stored_layers):
        subtree, row = layer_location(config, i)
        tree = functools.reduce(lambda node, key: node[key], subtree.split("/"), params)
        out[f"layers_{i}"] = tree if row is None else jax.tree.map(lambda a, r=row: a[r], tree)
    return out


def stack_layers(config: TransformerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Stack parameters from one subtree per layer to the scanned form; the inverse of `unstack_layers`."""
    plan = scan_plan(config)
    out = {f"layers_{i}": params[f"layers_{i}"] for i in range(config.stored_layers) if not plan.start <= i < plan.stop}
    if plan.repeats:
        out["stacked"] = {}
        for j in range(plan.period):
            members = [params[f"layers_{plan.start + r * plan.period + j}"] for r in range(plan.repeats)]
            out["stacked"][f"block_{j}"] = jax.tree.map(lambda *rows: jnp.stack(rows), *members)
    return out


# The kernels of a layer, and how many of their axes are inputs; those of the source meet many tokens.
SOURCE_KERNELS = {("cross_attention", name): 1 for name in ("key", "value")}
DECODER_KERNELS = {
    **{("self_attention", name): 1 for name in ("query", "key", "value")},
    ("cross_attention", "query"): 1,
    **{(part, "out"): 2 for part in ("self_attention", "cross_attention")},
    **{("mlp", name): 1 for name in ("up", "gate", "down")},
}


def outputs_first(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unstacked layers with the kernels that few tokens meet in decoding as [*outputs, *inputs]."""
    return _map_kernels(layers, DECODER_KERNELS, lambda kernel, inputs: {"kernel": _inputs_last(kernel, inputs)})


def inputs_first(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `outputs_first`."""
    back = lambda kernel, inputs: {"kernel": _inputs_last(kernel, kernel.ndim - inputs)}
    return _map_kernels(layers, DECODER_KERNELS, back)


def to_int8(layers: Mapping[str, Any]) -> dict[str, Any]:
    """All kernels of layers that come from `outputs_first` as int8, with a float32 `kernel_scale` [*outputs] each."""

    def quantised(kernel: jax.Array, inputs: int) -> dict[str, jax.Array]:
        values, scale = quantise(kernel, tuple(range(kernel.ndim - inputs, kernel.ndim)))
        return {"kernel": values, "kernel_scale": scale}

    layers = _map_kernels(layers, DECODER_KERNELS, quantised)
    return _map_kernels(layers, SOURCE_KERNELS, lambda kernel, n: quantised(_inputs_last(kernel, n), n))


def _inputs_last(kernel: jax.Array, first: int) -> jax.Array:
    """The first axes behind the others."""
    return jnp.transpose(kernel, (*range(first, kernel.ndim), *range(first)))


def _map_kernels(
    layers: Mapping[str, Any], kernels: Mapping[tuple[str, str], int], change: Callable[[jax.Array, int], dict]
) -> dict[str, Any]:
    out = {}
    for layer, parts in layers.items():
        out[layer] = {part: dict(tree) for part, tree in parts.items()}
        for (part, name), inputs in kernels.items():
            if name in parts.get(part, {}):
                leaves = parts[part][name]
                out[layer][part][name] = {**leaves, **change(leaves["kernel"], inputs)}
    return out
