"""The layers: one block, and a stack of blocks that is scanned or unrolled.

Training scans: the repeats of the layer pattern share one compiled body, and an odd first or last layer stands outside.
Decoding unrolls: a scan inside the decode loop would copy every kernel on every step. `stack_layers` and
`unstack_layers` convert the parameters of one form to the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.config import LayerSettings, TransformerConfig, nearest
from seq2seq_jax.models.attention import Attention
from seq2seq_jax.models.cache import Cache
from seq2seq_jax.models.layers import Mlp, Norm, Part
from seq2seq_jax.parallel.rules import constrain

REMAT_POLICIES: dict[str, Callable | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "dots_with_no_batch_dims": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


@struct.dataclass
class Context:
    """What every layer reads beside its input.

    Attributes:
      self_mask: bool, broadcastable to [batch, heads, length, length], or None.
      encoder_states: [batch, source, features], or None. cross_mask: bool, to [batch, heads, length, source], or None.
    """

    self_mask: jax.Array | None = None
    encoder_states: jax.Array | None = None
    cross_mask: jax.Array | None = None


@struct.dataclass
class LayerOutput:
    """What one layer shows on request: its input and its attention weights [batch, heads, length, keys]."""

    hidden: jax.Array | None = None
    attention: jax.Array | None = None
    cross_attention: jax.Array | None = None


class Show(NamedTuple):
    """What a forward pass returns beside its result, and whether dropout acts. Static."""

    train: bool = False
    attentions: bool = False
    hidden_states: bool = False


class Block(Part):
    """Self-attention, cross-attention where the layer has it, MLP; norms before (pre) or after (post) each."""

    settings: LayerSettings = LayerSettings()

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scale = self.settings.attention_scale
        scale = c.head_dim**-0.5 if scale is None else scale
        self.self_attention = Attention(c, kv_size=c.hidden_size, scale=scale, **kw)
        self.self_attention_norm = Norm(c, **kw)
        if self.has_cross:
            self.cross_attention = Attention(c, kv_size=c.cross_attention_size, scale=scale, **kw)
            self.cross_attention_norm = Norm(c, **kw)
        self.mlp = Mlp(c, **kw)
        self.mlp_norm = Norm(c, **kw)
        self.drop = nn.Dropout(c.dropout)

    @property
    def has_cross(self) -> bool:
        return self.config.cross_attention_size is not None and self.settings.cross_attention

    def _residual(self, x: jax.Array, norm: Callable, inner: Callable, train: bool) -> tuple[jax.Array, Any]:
        """x plus inner(x) under the norm scheme; inner returns its output and its attention weights."""
        pre = self.config.norm_position == "pre"
        y, weights = inner(norm(x) if pre else x)
        x = x + self.drop(y, deterministic=not train)
        return constrain(x if pre else norm(x), ("batch", "length", None)), weights

    def _forward(self, x, self_attend: Callable, cross_attend: Callable | None, train: bool):
        x, weights = self._residual(x, self.self_attention_norm, self_attend, train)
        cross_weights = None
        if cross_attend is not None:
            x, cross_weights = self._residual(x, self.cross_attention_norm, cross_attend, train)
        x, _ = self._residual(x, self.mlp_norm, lambda y: (self.mlp(y, train=train), None), train)
        return x, weights, cross_weights

    def __call__(self, x: jax.Array, context: Context, show: Show) -> tuple[jax.Array, LayerOutput]:
        def self_attend(y):
            return self.self_attention(y, self.self_attention.keys_values(y), context.self_mask, train=show.train)

        def cross_attend(y):
            keys_values = self.cross_attention.keys_values(context.encoder_states)
            return self.cross_attention(y, keys_values, context.cross_mask, train=show.train)

        new, weights, cross_weights = self._forward(
            x, self_attend, cross_attend if self.has_cross else None, show.train
        )
        shown = LayerOutput(
            hidden=x if show.hidden_states else None,
            attention=weights if show.attentions else None,
            cross_attention=cross_weights if show.attentions else None,
        )
        return new, shown

    def cross_keys_values(self, encoder_states: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Keys and values of the source for the cache."""
        return self.cross_attention.keys_values(encoder_states) if self.has_cross else None

    def decode(self, x: jax.Array, layer: int, cache: Cache, beams: int, visible: jax.Array) -> tuple[jax.Array, Cache]:
        """One step over the cache: x [batch, beams * tokens, hidden]."""
        written = None

        def self_attend(y):
            nonlocal written
            written = cache.write(layer, *self.self_attention.keys_values(y), beams)
            return self.self_attention(y, (written.keys[layer], written.values[layer]), visible)

        def cross_attend(y):
            return self.cross_attention(y, cache.cross[layer], cache.cross_mask[:, None, None, :])

        x, _, _ = self._forward(x, self_attend, cross_attend if self.has_cross else None, False)
        return x, written


class Repeat(Part):
    """One repeat of the layer pattern, the body of the scan."""

    pattern: tuple[LayerSettings, ...] = ()
    remat: str = "none"

    def setup(self):
        block = rematerialised(self.remat)
        kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.block = [block(self.config, settings=settings, **kw) for settings in self.pattern]

    def __call__(self, x, context, show):
        shown = []
        for block in self.block:
            x, output = block(x, context, show)
            shown.append(output)
        return x, tuple(shown)


def rematerialised(policy: str) -> type[Block]:
    """`Block`, whose backward pass recomputes what `policy` does not keep."""
    if policy == "none":
        return Block
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat policy {policy!r} is unknown: {nearest(policy, ('none', *REMAT_POLICIES))}")
    return nn.remat(Block, policy=REMAT_POLICIES[policy], prevent_cse=False, static_argnums=(3,))


class Plan(NamedTuple):
    """Layers [start, start + period * repeats) are scanned; the others stand alone."""

    start: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.repeats


@functools.lru_cache(maxsize=256)
def scan_plan(config: TransformerConfig) -> Plan:
    """The plan that traces the fewest layers; repeats is 0 where a scan saves nothing."""
    layers = [config.layer(i) for i in range(config.num_layers)]
    n, best, fewest = len(layers), Plan(0, 1, 0), len(layers)
    for period in range(1, n // 2 + 1):
        for start in range(n - 2 * period + 1):
            repeats = 1
            while (stop := start + period * (repeats + 1)) <= n and layers[stop - period : stop] == layers[
                start : start + period
            ]:
                repeats += 1
            traced = n - period * (repeats - 1)
            if repeats > 1 and traced < fewest:
                best, fewest = Plan(start, period, repeats), traced
    return best


class Stack(Part):
    """All layers: parameters `layers_<i>` for those that stand alone, `stacked/block_<j>` for the scanned ones."""

    unrolled: bool = False
    remat: str = "none"

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        plan = Plan(0, 1, 0) if self.unrolled else scan_plan(c)
        block = rematerialised(self.remat)
        self.alone = {
            i: block(c, settings=c.layer(i), name=f"layers_{i}", **kw)
            for i in range(c.num_layers)
            if not plan.start <= i < plan.stop
        }
        self.plan = plan
        if plan.repeats:
            pattern = tuple(c.layer(plan.start + j) for j in range(plan.period))
            scanned = nn.scan(
                Repeat,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast),
                length=plan.repeats,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.stacked = scanned(c, pattern=pattern, remat=self.remat, **kw)

    def __call__(self, x: jax.Array, context: Context, show: Show) -> tuple[jax.Array, list[LayerOutput]]:
        """x [batch, length, hidden] through all layers; one `LayerOutput` per layer."""
        shown: list[LayerOutput] = []
        i = 0
        while i < self.config.num_layers:
            if i in self.alone:
                x, output = self.alone[i](x, context, show)
                shown.append(output)
                i += 1
            else:
                x, outputs = self.stacked(x, context, show)
                for repeat in range(self.plan.repeats):
                    shown.extend(jax.tree.map(lambda a, r=repeat: a[r], outputs))
                i = self.plan.stop
        return x, shown

    def _layers(self) -> list[Block]:
        if not self.unrolled:
            raise ValueError("decoding needs the unrolled model: use model.for_decoding() with unstacked parameters")
        return [self.alone[i] for i in range(self.config.num_layers)]

    def cross_keys_values(self, encoder_states: jax.Array) -> tuple:
        return tuple(block.cross_keys_values(encoder_states) for block in self._layers())

    def decode(self, x: jax.Array, cache: Cache, beams: int) -> tuple[jax.Array, Cache]:
        """x [batch, beams * tokens, hidden] at the cache's index; returns the states and the extended cache."""
        visible = cache.visible(beams, x.shape[1] // beams)
        for i, block in enumerate(self._layers()):
            x, cache = block.decode(x, i, cache, beams, visible)
        return x, cache.replace(index=cache.index + x.shape[1] // beams)


def layer_slot(config: TransformerConfig, index: int) -> tuple[str, int | None]:
    """Where layer `index` is stored: the subtree of the stack, and its row there (None: it stands alone)."""
    plan = scan_plan(config)
    if not plan.start <= index < plan.stop:
        return f"layers_{index}", None
    repeat, j = divmod(index - plan.start, plan.period)
    return f"stacked/block_{j}", repeat


def unstack_layers(config: TransformerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Stack parameters from the scanned form to one subtree per layer."""
    out = {}
    for i in range(config.num_layers):
        slot, row = layer_slot(config, i)
        tree = functools.reduce(lambda node, key: node[key], slot.split("/"), params)
        out[f"layers_{i}"] = tree if row is None else jax.tree.map(lambda a, r=row: a[r], tree)
    return out


def stack_layers(config: TransformerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Stack parameters from one subtree per layer to the scanned form; the inverse of `unstack_layers`."""
    plan = scan_plan(config)
    out = {f"layers_{i}": params[f"layers_{i}"] for i in range(config.num_layers) if not plan.start <= i < plan.stop}
    if plan.repeats:
        out["stacked"] = {}
        for j in range(plan.period):
            members = [params[f"layers_{plan.start + r * plan.period + j}"] for r in range(plan.repeats)]
            out["stacked"][f"block_{j}"] = jax.tree.map(lambda *rows: jnp.stack(rows), *members)
    return out
