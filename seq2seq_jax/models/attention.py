"""Multi-head attention: over a sequence, over another sequence, and over a cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.models import cpu
from seq2seq_jax.models.kernels import SegmentIds, check_kernel, fused_attention
from seq2seq_jax.models.layers import LOWEST, Dropout, Norm, Projection, TransformerModule, accumulate_float32
from seq2seq_jax.models.positions import (
    RelativePositionBias,
    Rotation,
    disentangled_scores,
    disentangled_table_rows,
    rotate,
)
from seq2seq_jax.parallel.axes import constrain


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    scale: float,
    drop=None,
    *,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    cached: bool = False,
    return_weights: bool = True,
    extra: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Softmax attention; the softmax is float32.

    Args:
      q: [batch, heads, queries, head_dim]. k, v: [batch, kv heads, keys, head_dim]; each serves heads / kv heads.
      mask: bool, broadcastable to [batch, 1, queries, keys], or None. A query that sees nothing attends to
        nothing: its output is 0, as in torch's scaled_dot_product_attention.
      drop: a function on the attention weights, or None.
      bias: added to the scaled scores, [batch or 1, heads, queries, keys]. softcap: bounds them before that.
      cached: k is as the cache holds it, [batch, kv heads, head_dim, keys], or of a source as `cpu.tile_keys` gives it.
      return_weights: without them, a CPU works on long texts a few heads at a time.
      extra: keys, values and mask of a source, which share one softmax with the others; needs `return_weights`.

    Returns:
      The output [batch, heads, queries, head_dim] and the weights [batch, heads, queries, keys], or None.
    """
    shape, groups = q.shape, q.shape[1] // k.shape[1]
    if groups > 1:  # the queries that share keys stand in a row
        q = q.reshape(shape[0], k.shape[1], groups * shape[2], shape[3])
        if mask is not None and mask.shape[2] > 1:
            mask = jnp.tile(mask, (1, 1, groups, 1))
        if bias is not None:
            bias = bias.reshape(bias.shape[0], k.shape[1], groups * shape[2], -1)

    def attend_all(q, k, v, mask, bias):
        return _attend(q, k, v, mask, scale, drop, bias=bias, softcap=softcap, cached=cached, extra=extra)

    if return_weights:
        y, weights = attend_all(q, k, v, mask, bias)
        weights = weights.reshape(*shape[:3], -1)
    else:
        y, weights = cpu.attend_by_heads(lambda *args: attend_all(*args)[0], q, k, v, mask, bias), None
    return y.reshape(shape), weights


def _scores(q, k, mask, scale, *, bias, softcap, cached) -> jax.Array:
    """What the softmax reads, float32 [batch, heads, queries, keys]."""
    scores = _products(q, k, cached) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else jnp.where(mask, scores, LOWEST)


def _attend(q, k, v, mask, scale, drop, *, bias, softcap, cached, extra) -> tuple[jax.Array, jax.Array]:
    """`attend` where each head has keys of its own."""
    scores = _scores(q, k, mask, scale, bias=bias, softcap=softcap, cached=cached)
    if extra is not None:
        more = _scores(q, extra[0], extra[2], scale, bias=None, softcap=softcap, cached=cached)
        scores = jnp.concatenate([scores, more], axis=-1)
    top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
    scores = jnp.exp(scores - top)
    # The output is normalised, which is small, not the weights: they are the largest array of a step.
    share = jnp.where(top > LOWEST, 1.0 / jnp.sum(scores, -1, keepdims=True), 0.0)
    dropped = scores.astype(v.dtype) if drop is None else drop(scores.astype(v.dtype))
    product = functools.partial(accumulate_float32, functools.partial(jnp.einsum, "bhqk,bhkd->bhqd"))
    if extra is None:
        y = product(dropped, v)
    else:
        own, more = jnp.split(dropped, [v.shape[2]], axis=-1)
        y = product(own, v) + product(more, extra[1])
    y = checkpoint_name(y, "attention_out")
    return (y * share).astype(v.dtype), (scores * share).astype(v.dtype)


def _products(q: jax.Array, k: jax.Array, cached: bool) -> jax.Array:
    """Each query with each key, float32 [batch, heads, queries, keys]."""
    if k.ndim == 5:
        return cpu.product_with_tiles(q, k)
    form = "bhqd,bhdk->bhqk" if cached else "bhqd,bhkd->bhqk"
    return accumulate_float32(functools.partial(jnp.einsum, form), q, k)


class Attention(TransformerModule):
    """Queries from one sequence; keys and values from the same one, from another, or projected before.

    Attributes:
      settings: of the layer.
      kv_size: width of the sequence that keys and values come from.
      cross: over another sequence, where positions mean nothing.
      attention_impl: "xla", or a kernel (models/kernels.py), which takes no cached keys and returns no weights.
    """

    settings: LayerSettings = LayerSettings()
    kv_size: int = 0
    cross: bool = False
    attention_impl: str = "xla"

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        first = {"outputs_first": self.outputs_first}
        source = {"outputs_first": self.outputs_first and not self.cross}
        axes, wide = ("embed", "heads", "head_dim"), (c.hidden_size,)
        heads, kv_heads = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
        key_bias = c.attention_bias if c.attention_key_bias is None else c.attention_key_bias
        self.query = Projection(c, inputs=wide, outputs=heads, axes=axes, bias=c.attention_bias, **first, **kw)
        kv = {"inputs": (self.kv_size,), "outputs": kv_heads, "axes": axes, **source, **kw}
        self.key = Projection(c, bias=key_bias, **kv)
        self.value = Projection(c, bias=c.attention_bias, **kv)
        back = ("heads", "head_dim", "embed")
        self.out = Projection(c, inputs=heads, outputs=wide, axes=back, bias=c.attention_out_bias, **first, **kw)
        self.drop = Dropout(c.attention_dropout)
        if c.query_key_norm:
            self.query_norm, self.key_norm = Norm(c, **kw), Norm(c, **kw)
        if self.cross:
            return
        if c.relative_bias is not None and c.relative_bias.per_layer:
            self.bias = RelativePositionBias(c, **kw)
        d = c.disentangled
        if d is not None and not d.shared_projections:
            if d.position_to_content:
                self.position_query = Projection(c, inputs=wide, outputs=heads, axes=axes, **kw)
            if d.content_to_position:
                self.position_key = Projection(c, inputs=wide, outputs=heads, axes=axes, bias=d.key_bias, **kw)

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        given = self.settings.attention_scale
        return self.config.head_dim**-0.5 if given is None else given

    def _heads_first(self, x: jax.Array) -> jax.Array:
        """[batch, length, heads, head_dim] to [batch, heads, length, head_dim]."""
        return constrain(jnp.swapaxes(x, 1, 2), ("batch", "heads", "length", None))

    def _normed(self, x: jax.Array, norm: Norm) -> jax.Array:
        """x [batch, heads, length, head_dim] normed by head, or over all heads."""
        if not self.config.query_key_norm_all_heads:
            return norm(x)
        wide = jnp.swapaxes(x, 1, 2)
        return jnp.swapaxes(norm(wide.reshape(*wide.shape[:2], -1)).reshape(wide.shape), 1, 2)

    def _rotated(self, x: jax.Array, rotation: Rotation | None) -> jax.Array:
        return x if rotation is None else rotate(x, rotation, interleaved=self.settings.rotary.interleaved)

    def queries(self, x: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        """[batch, length, hidden] to [batch, heads, length, head_dim]."""
        q = self._heads_first(self.query(x))
        return self._rotated(self._normed(q, self.query_norm) if self.config.query_key_norm else q, rotation)

    def keys_values(self, x: jax.Array, rotation: Rotation | None = None) -> tuple[jax.Array, jax.Array]:
        """[batch, length, kv_size] to keys and values, [batch, kv heads, length, head_dim]."""
        k, v = (self._heads_first(projection(x)) for projection in (self.key, self.value))
        k = self._rotated(self._normed(k, self.key_norm) if self.config.query_key_norm else k, rotation)
        turn_values = rotation is not None and self.settings.rotary.values
        return k, self._rotated(v, rotation) if turn_values else v

    def position_scores(self, q: jax.Array, k: jax.Array, table: jax.Array) -> jax.Array:
        """DeBERTa's scores between contents and relative positions, scaled; `table` [rows, hidden]."""
        d, table = self.config.disentangled, table[None]
        to_query, to_key = (self.query, self.key) if d.shared_projections else (None, None)
        position_q = position_k = None
        if d.position_to_content:
            position_q = jnp.swapaxes((to_query or self.position_query)(table), 1, 2)
        if d.content_to_position:
            position_k = jnp.swapaxes((to_key or self.position_key)(table), 1, 2)
        rows = disentangled_table_rows(q.shape[2], d)
        return self.scale * disentangled_scores(q, k, position_q, position_k, rows)

    def __call__(
        self,
        x: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        mask: jax.Array | SegmentIds | None,
        *,
        train: bool = False,
        rotation: Rotation | None = None,
        bias: jax.Array | None = None,
        position_table: jax.Array | None = None,
        cached: bool = False,
        return_weights: bool = True,
        extra: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """x [batch, length, hidden] attends over keys_values; returns the like of x, and the weights.

        Options are those of `attend`.
        """
        q = self.queries(x, rotation)
        if position_table is not None:
            bias = self.position_scores(q, keys_values[0], position_table)
        drop = None
        if train and self.config.attention_dropout:
            drop = lambda weights: self.drop(weights, deterministic=False)
        c, name = self.config, self.attention_impl
        options = {"scale": self.scale, "softcap": c.attention_softcap}
        if name == "xla":
            options.update(drop=drop, bias=bias, cached=cached, return_weights=return_weights, extra=extra)
            y, weights = attend(q, *keys_values, mask, **options)
        else:
            check_kernel(name, c, q, keys_values[0], dropout=drop is not None, bias=bias is not None)
            causal, window = (False, None) if self.cross else (c.causal, self.settings.reach)
            y, weights = fused_attention(name, q, *keys_values, mask, causal=causal, window=window, **options), None
        return self.out(jnp.swapaxes(y, 1, 2)), weights
