"""Multi-head attention: over a sequence, over another sequence, and over a cache."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from seq2seq_jax.models.layers import LOWEST, Part, Projection
from seq2seq_jax.parallel.rules import constrain


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, scale: float, drop=None
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention; the softmax is float32.

    Args:
      q: [batch, heads, queries, head_dim]. k, v: [batch, heads, keys, head_dim].
      mask: bool, broadcastable to [batch, heads, queries, keys], or None. A query that sees nothing attends to
        nothing: its output is 0, as in torch's scaled_dot_product_attention.
      drop: a function on the attention weights, or None.

    Returns:
      The output [batch, heads, queries, head_dim] and the weights [batch, heads, queries, keys].
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, LOWEST)
    scores = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    if mask is not None:
        scores = jnp.where(mask, scores, 0.0)
    weights = scores / jnp.maximum(jnp.sum(scores, -1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    weights = weights.astype(v.dtype)
    dropped = weights if drop is None else drop(weights)
    return jnp.einsum("bhqk,bhkd->bhqd", dropped, v), weights


class Attention(Part):
    """Queries from one sequence; keys and values from the same one, from another, or projected before.

    Attributes:
      kv_size: width of the sequence that keys and values come from.
      scale: factor on the scores.
    """

    kv_size: int = 0
    scale: float = 1.0

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads, axes = (c.num_heads, c.head_dim), ("embed", "heads", "head_dim")
        self.query = Projection(c, inputs=(c.hidden_size,), outputs=heads, axes=axes, **kw)
        self.key = Projection(c, inputs=(self.kv_size,), outputs=heads, axes=axes, **kw)
        self.value = Projection(c, inputs=(self.kv_size,), outputs=heads, axes=axes, **kw)
        self.out = Projection(c, inputs=heads, outputs=(c.hidden_size,), axes=("heads", "head_dim", "embed"), **kw)
        self.drop = nn.Dropout(c.attention_dropout)

    def _heads_first(self, x: jax.Array) -> jax.Array:
        return constrain(jnp.swapaxes(x, 1, 2), ("batch", "heads", "length", None))

    def queries(self, x: jax.Array) -> jax.Array:
        """[batch, length, hidden] to [batch, heads, length, head_dim]."""
        return self._heads_first(self.query(x))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[batch, length, kv_size] to keys and values [batch, heads, length, head_dim]."""
        return self._heads_first(self.key(x)), self._heads_first(self.value(x))

    def __call__(
        self,
        x: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        mask: jax.Array | None,
        *,
        train: bool = False,
        queries: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """x [batch, length, hidden] attends over keys_values; returns [batch, length, hidden] and the weights."""
        drop = None
        if train and self.config.attention_dropout:
            drop = lambda weights: self.drop(weights, deterministic=False)
        q = self.queries(x) if queries is None else queries
        y, weights = attend(q, *keys_values, mask, self.scale, drop)
        return self.out(jnp.swapaxes(y, 1, 2)), weights
