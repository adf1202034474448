"""The layers: one block, and a stack of blocks that is scanned or unrolled.

Training scans: the repeats of the layer pattern share one compiled body, and an odd first or last layer stands outside.
Decoding unrolls: a scan inside the decode loop would copy every kernel on every step. models/param_layouts.py converts
parameters from one form to the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.config import REMATS, LayerSettings, nearest
from seq2seq_jax.models import cpu
from seq2seq_jax.models.attention import Attention
from seq2seq_jax.models.cache import Cache
from seq2seq_jax.models.kernels import SegmentIds
from seq2seq_jax.models.layers import Dropout, Mlp, Norm, TransformerModule, clamp_float16, residual_dtype
from seq2seq_jax.models.param_layouts import ScanPlan, scan_plan
from seq2seq_jax.models.positions import Rotation
from seq2seq_jax.parallel.axes import constrain


@struct.dataclass
class LayerContext:
    """What every layer reads beside its input.

    Attributes:
      self_masks: one for each of the config's windows: bool, broadcastable to [batch, 1, queries, keys], or None; for
        splash attention `SegmentIds`. Outside of decoding those of merged attention are [batch, 1, queries, queries +
        source].
      cross_mask: likewise, [batch, 1, queries, source].
      rotations: for each of the config's rotaries, its cosine and sine.
      positions: of queries [queries] and keys [keys], for relative biases. bias: that of all layers, or None.
      position_table: DeBERTa's, or None.
      encoder_states: [batch, source, features], or None.
    """

    self_masks: tuple[jax.Array | SegmentIds | None, ...] = (None,)
    rotations: tuple[Rotation, ...] = ()
    positions: tuple[jax.Array, jax.Array] | None = None
    bias: jax.Array | None = None
    position_table: jax.Array | None = None
    encoder_states: jax.Array | None = None
    cross_mask: jax.Array | SegmentIds | None = None


@struct.dataclass
class LayerOutput:
    """What one layer shows on request: its input and its attention weights [batch, heads, length, keys]."""

    hidden: jax.Array | None = None
    attention: jax.Array | None = None
    cross_attention: jax.Array | None = None


class OutputFlags(NamedTuple):
    """What a forward pass returns beside its result, and whether dropout acts. Static."""

    train: bool = False
    attentions: bool = False
    hidden_states: bool = False


class Block(TransformerModule):
    """Self-attention, cross-attention where the layer has it, MLP; norms before or after each, or both.

    With merged attention the first two are one, and the weights on the source are its last ones.
    """

    settings: LayerSettings = LayerSettings()
    attention_impl: str = "xla"

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype, "outputs_first": self.outputs_first}
        attention = {"settings": self.settings, "attention_impl": self.attention_impl, **kw}
        self.self_attention = Attention(c, kv_size=c.hidden_size, **attention)
        if self.has_cross:
            self.cross_attention = Attention(c, kv_size=c.cross_attention_size, cross=True, **attention)
        self.mlp = Mlp(c, **kw)
        for part in ("self_attention", *(("cross_attention",) if self.has_cross else ()), "mlp"):
            if self._norm_before(part) == f"{part}_norm" or c.norm_position == "post":
                setattr(self, f"{part}_norm", Norm(c, **kw))
            if c.norm_position in ("sandwich", "res_post"):
                setattr(self, f"{part}_post_norm", Norm(c, **kw))
        self.drop = Dropout(c.dropout)

    @property
    def has_cross(self) -> bool:
        c = self.config
        return c.cross_attention_size is not None and self.settings.cross_attention and not c.merged_attention

    def _norm_before(self, part: str) -> str | None:
        """The name of the norm in front of `part`, if there is any."""
        c = self.config
        if c.norm_position not in ("pre", "sandwich") or (
            part == "self_attention" and not self.settings.attention_norm
        ):
            return None
        return "self_attention_norm" if part == "mlp" and c.parallel_norm else f"{part}_norm"

    def _branch(self, x: jax.Array, part: str, inner: Callable, train: bool) -> tuple[jax.Array, Any]:
        """What `part` adds to x; inner returns its output and its attention weights."""
        position, norm = self.config.norm_position, self._norm_before(part)
        y, weights = inner(x if norm is None else getattr(self, norm)(x))
        if position in ("sandwich", "res_post"):
            y = getattr(self, f"{part}_post_norm")(y)
        if self.config.residual_scale != 1.0:
            y = y * jnp.asarray(self.config.residual_scale, y.dtype)
        if self.config.float16 == "float32_residual":
            y = clamp_float16(y)
        return self.drop(y, deterministic=not train), weights

    def _residual(self, x: jax.Array, part: str, inner: Callable, train: bool) -> tuple[jax.Array, Any]:
        y, weights = self._branch(x, part, inner, train)
        x = x + y
        if self.config.norm_position == "post":
            x = getattr(self, f"{part}_norm")(x)
        return constrain(x, ("batch", "length", None)), weights

    def _forward(self, x, self_attend: Callable, cross_attend: Callable | None, train: bool):
        mlp = lambda y: (self.mlp(y, train=train), None)
        beside = self._branch(x, "mlp", mlp, train)[0] if self.config.parallel_residual else None
        x, weights = self._residual(x, "self_attention", self_attend, train)
        cross_weights = None
        if cross_attend is not None:
            x, cross_weights = self._residual(x, "cross_attention", cross_attend, train)
        x = self._residual(x, "mlp", mlp, train)[0] if beside is None else x + beside
        if self.config.float16 == "clamped":
            x = clamp_float16(x)
        return x, weights, cross_weights

    def _self_attend(self, y: jax.Array, keys_values: Any, context: LayerContext, *, train: bool = False, **options):
        """keys_values: those to attend over, from new ones. options: of `attend`."""
        c, attention = self.config, self.self_attention
        rotary = self.settings.rotary
        rotation = None if rotary is None else context.rotations[c.rotaries.index(rotary)]
        bias = context.bias
        if c.relative_bias is not None and c.relative_bias.per_layer:
            bias = attention.bias(*context.positions)
        return attention(
            y,
            keys_values(attention.keys_values(y, rotation)),
            context.self_masks[c.windows.index(self.settings.reach)],
            train=train,
            rotation=rotation,
            bias=bias,
            position_table=context.position_table,
            **options,
        )

    def __call__(self, x: jax.Array, context: LayerContext, flags: OutputFlags) -> tuple[jax.Array, LayerOutput]:
        options = {"train": flags.train, "return_weights": flags.train or flags.attentions}

        def self_attend(y):
            if not self.config.merged_attention:
                return self._self_attend(y, lambda new: new, context, **options)
            source = self._source_keys_values(context.encoder_states)
            joined = lambda new: tuple(jnp.concatenate(both, axis=2) for both in zip(new, source))
            return self._self_attend(y, joined, context, **options)

        def cross_attend(y):
            keys_values = self.cross_attention.keys_values(context.encoder_states)
            return self.cross_attention(y, keys_values, context.cross_mask, **options)

        new, weights, cross_weights = self._forward(
            x, self_attend, cross_attend if self.has_cross else None, flags.train
        )
        if self.config.merged_attention and weights is not None:
            weights, cross_weights = jnp.split(weights, [weights.shape[2]], axis=-1)
        output = LayerOutput(
            hidden=x if flags.hidden_states else None,
            attention=weights if flags.attentions else None,
            cross_attention=cross_weights if flags.attentions else None,
        )
        return new, output

    def _source_keys_values(self, encoder_states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the cross-attention, or of the merged one."""
        return (self.cross_attention if self.has_cross else self.self_attention).keys_values(encoder_states)

    def cross_keys_values(self, encoder_states: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Keys as `cpu.tile_keys` gives them and values [batch, kv heads, source, head_dim] for the cache."""
        if not self.has_cross and not self.config.merged_attention:
            return None
        k, v = self._source_keys_values(encoder_states)
        return cpu.tile_keys(k), v

    def decode(
        self, x: jax.Array, layer: int, cache: Cache, beams: int, context: LayerContext
    ) -> tuple[jax.Array, jax.Array | None, Cache]:
        """One step over the cache, x [batch, beams * tokens, hidden]: its like, weights on the source, the cache."""
        written = None

        def write(new):
            nonlocal written
            written = cache.write(layer, *new, beams)
            return written.keys[layer], written.values[layer]

        source_mask = cache.cross_mask[:, None, None, :]
        merged = self.config.merged_attention
        extra = (*cache.cross[layer], source_mask) if merged else None

        def self_attend(y):
            return self._self_attend(y, write, context, cached=True, extra=extra)

        def cross_attend(y):
            return self.cross_attention(y, cache.cross[layer], source_mask, cached=True)

        x, own, weights = self._forward(x, self_attend, cross_attend if self.has_cross else None, False)
        return x, own[..., -cache.cross_mask.shape[1] :] if merged else weights, written


class ScanBody(TransformerModule):
    """One repeat of the layer pattern, the body of the scan."""

    pattern: tuple[LayerSettings, ...] = ()
    remat: str = "none"
    attention_impl: str = "xla"

    def setup(self):
        block = remat_block(self.remat)
        kw = {"dtype": self.dtype, "param_dtype": self.param_dtype, "attention_impl": self.attention_impl}
        self.block = [block(self.config, settings=settings, **kw) for settings in self.pattern]

    def __call__(self, x, context, flags):
        layer_outputs = []
        for block in self.block:
            x, output = block(x, context, flags)
            layer_outputs.append(output)
        return x, tuple(layer_outputs)


def remat_block(policy: str) -> type[Block]:
    """`Block`, whose backward pass recomputes what `policy` does not keep."""
    if policy == "none":
        return Block
    if policy not in REMATS:
        raise ValueError(f"remat policy {policy!r} is unknown: {nearest(policy, REMATS)}")
    return nn.remat(Block, policy=REMATS[policy](jax.checkpoint_policies), prevent_cse=False, static_argnums=(3,))


class Stack(TransformerModule):
    """All layers: parameters `layers_<i>` for those that stand alone, `stacked/block_<j>` for the scanned ones."""

    unrolled: bool = False
    remat: str = "none"
    attention_impl: str = "xla"
    scan_unroll: int = 1

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kw["attention_impl"] = self.attention_impl
        plan = ScanPlan(0, 1, 0) if self.unrolled else scan_plan(c)
        block = remat_block(self.remat)
        self.unscanned = {
            i: block(c, settings=c.layer(i), outputs_first=self.outputs_first, name=f"layers_{i}", **kw)
            for i in range(c.stored_layers)
            if not plan.start <= i < plan.stop
        }
        self.plan = plan
        if plan.repeats:
            pattern = tuple(c.layer(plan.start + j) for j in range(plan.period))
            scanned = nn.scan(
                ScanBody,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast),
                length=plan.repeats,
                unroll=min(self.scan_unroll, plan.repeats),
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.stacked = scanned(c, pattern=pattern, remat=self.remat, **kw)

    def __call__(self, x: jax.Array, context: LayerContext, flags: OutputFlags) -> tuple[jax.Array, list[LayerOutput]]:
        """x [batch, length, hidden] through all layers; one `LayerOutput` per layer."""
        x, layer_outputs = x.astype(residual_dtype(self.config, self.dtype)), []
        if self.config.shared_layers is not None:
            return self._shared(x, context, flags)
        i = 0
        while i < self.config.num_layers:
            if i in self.unscanned:
                x, output = self.unscanned[i](x, context, flags)
                layer_outputs.append(output)
                i += 1
            else:
                x, outputs = self.stacked(x, context, flags)
                for repeat in range(self.plan.repeats):
                    layer_outputs.extend(jax.tree.map(lambda a, r=repeat: a[r], outputs))
                i = self.plan.stop
        return x, layer_outputs

    def _shared(self, x: jax.Array, context: LayerContext, flags: OutputFlags) -> tuple[jax.Array, list[LayerOutput]]:
        """Layers in a row that share their parameters are one scan over nothing but their number."""
        layer_outputs: list[LayerOutput] = []
        for index, run in itertools.groupby(self.config.shared_layers):
            length = len(list(run))
            repeat = nn.scan(
                lambda block, x, _: block(x, context, flags),
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                length=length,
            )
            x, outputs = repeat(self.unscanned[index], x, None)
            layer_outputs.extend(jax.tree.map(lambda a, i=i: a[i], outputs) for i in range(length))
        return x, layer_outputs

    def _layers(self) -> list[Block]:
        if not self.unrolled:
            raise ValueError("decoding needs the unrolled model: use model.for_decoding() and model.decoding_params()")
        c = self.config
        return [self.unscanned[i] for i in c.shared_layers or range(c.num_layers)]

    def cross_keys_values(self, encoder_states: jax.Array) -> tuple:
        return tuple(block.cross_keys_values(encoder_states) for block in self._layers())

    def decode(
        self, x: jax.Array, cache: Cache, beams: int, context: LayerContext
    ) -> tuple[jax.Array, jax.Array | None, Cache]:
        """x [batch, beams * tokens, hidden] at the cache's index.

        Returns:
          The states, the weights on the source of the last layer that has any, [batch, heads, beams * tokens, source],
          and the extended cache.
        """
        count, seen = x.shape[1] // beams, None
        x = x.astype(residual_dtype(self.config, self.dtype))
        for i, block in enumerate(self._layers()):
            x, weights, cache = block.decode(x, i, cache, beams, context)
            seen = seen if weights is None else weights
        return x, seen, cache.replace(index=cache.index + count)
