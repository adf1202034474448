"""Relative positions: rotary embedding, T5's buckets, DeBERTa's disentangled scores."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.config import Disentangled, RelativeBias, Rotary
from seq2seq_jax.models.layers import EmbeddingTable, Norm, TransformerModule

Rotation = tuple[jax.Array, jax.Array]


def rotations(rotaries: tuple[Rotary, ...], position_ids: jax.Array) -> tuple[Rotation, ...]:
    """For each, cosine and sine of positions [batch, length]: float32 [batch, 1, length, pairs]."""
    positions = position_ids[:, None, :, None].astype(jnp.float32)
    angles = [positions * jnp.asarray(rotary.frequencies, jnp.float32) for rotary in rotaries]
    return tuple((jnp.cos(a) * r.factor, jnp.sin(a) * r.factor) for r, a in zip(rotaries, angles))


def rotate(x: jax.Array, rotation: Rotation, *, interleaved: bool) -> jax.Array:
    """The pairs of features of x [batch, heads, length, head_dim] turned; features beyond the pairs stay."""
    cos, sin = rotation
    n = cos.shape[-1]
    turned, rest = x[..., : 2 * n].astype(jnp.float32), x[..., 2 * n :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., :n], turned[..., n:]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def relative_position_bucket(distance: jax.Array, settings: RelativeBias, *, causal: bool) -> jax.Array:
    """T5's bucket of key position - query position (transformers.T5Attention._relative_position_bucket)."""
    buckets, found = settings.buckets, jnp.zeros_like(distance)
    if causal:
        distance = jnp.maximum(-distance, 0)
    else:
        buckets //= 2
        found = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    exact = buckets // 2
    # The logarithm of 0 is not used, but would be a warning.
    scale = (buckets - exact) / math.log(settings.max_distance / exact)
    far = exact + (jnp.log(jnp.maximum(distance, 1) / exact) * scale).astype(jnp.int32)
    return found + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativePositionBias(TransformerModule):
    """T5's table of biases: positions of queries [q] and keys [k] to [1, heads, q, k]."""

    def setup(self):
        c = self.config
        kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shape = {"rows": c.relative_bias.buckets, "features": c.num_heads, "axes": ("position", "heads")}
        self.table = EmbeddingTable(c, **shape, **kw)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        c = self.config
        buckets = relative_position_bucket(keys[None, :] - queries[:, None], c.relative_bias, causal=c.causal)
        return jnp.moveaxis(self.table(buckets), -1, 0)[None]


class RelativePositionTable(TransformerModule):
    """DeBERTa's table of relative positions: [2 * span, hidden]."""

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        rows = 2 * c.disentangled.span
        self.table = EmbeddingTable(c, rows=rows, features=c.hidden_size, axes=("position", "embed"), **kw)
        if c.disentangled.norm:
            self.norm = Norm(c, **kw)

    def __call__(self) -> jax.Array:
        return self.norm(self.table.embedding) if self.config.disentangled.norm else self.table.embedding


def disentangled_table_rows(length: int, settings: Disentangled) -> np.ndarray:
    """The row of the table for each query and key, [length, length] (transformers' build_relative_position)."""
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    if settings.buckets:
        middle, farthest = settings.buckets // 2, settings.max_distance - 1
        near = np.abs(distance) < middle
        size = np.where(near, middle - 1, np.abs(distance)).astype(np.float32)
        log = np.log(size / np.float32(middle)) / np.log(np.float32(farthest / middle)) * (middle - 1)
        distance = np.where(size <= middle, distance, (np.ceil(log) + middle) * np.sign(distance)).astype(np.int32)
    return np.clip(distance + settings.span, 0, 2 * settings.span - 1)


def disentangled_scores(
    q: jax.Array, k: jax.Array, position_q: jax.Array | None, position_k: jax.Array | None, rows: np.ndarray
) -> jax.Array:
    """Content to position and position to content (He et al. 2021), unscaled.

    Args:
      q, k: [batch, heads, length, head_dim]. position_q, position_k: [1, heads, rows of the table, head_dim], or None.

    Returns:
      float32 [batch, heads, length, length].
    """
    scores = 0.0
    if position_k is not None:
        by_row = jnp.einsum("bhqd,bhrd->bhqr", q, jnp.broadcast_to(position_k, (q.shape[0], *position_k.shape[1:])))
        scores = scores + jnp.take_along_axis(by_row, jnp.asarray(rows)[None, None], axis=-1)
    if position_q is not None:
        by_row = jnp.einsum("bhkd,bhrd->bhkr", k, jnp.broadcast_to(position_q, (k.shape[0], *position_q.shape[1:])))
        # Of key j and query i: row[i, j].
        scores = scores + jnp.swapaxes(jnp.take_along_axis(by_row, jnp.asarray(rows.T)[None, None], axis=-1), 2, 3)
    return scores
