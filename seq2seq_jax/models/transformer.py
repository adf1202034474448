"""One transformer: embeddings, layers, final norm, head. Encoder or decoder by its config alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seq2seq_jax.models.cache import Cache
from seq2seq_jax.models.layers import Embeddings, Head, Norm, Part
from seq2seq_jax.models.stack import Context, LayerOutput, Show, Stack
from seq2seq_jax.parallel.rules import constrain


def restarting_positions(pack_ids: jax.Array) -> jax.Array:
    """Positions [batch, length] that restart at 0 where a new pack begins."""
    index = jnp.arange(pack_ids.shape[1])
    begins = jnp.concatenate([jnp.ones_like(pack_ids[:, :1], bool), pack_ids[:, 1:] != pack_ids[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


class Transformer(Part):
    """Ids [batch, length] to states [batch, length, hidden], and states to logits [..., padded_vocab_size]."""

    unrolled: bool = False
    remat: str = "none"

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embeddings = Embeddings(c, **kw)
        self.layers = Stack(c, unrolled=self.unrolled, remat=self.remat, **kw)
        if c.final_norm:
            self.final_norm = Norm(c, **kw)
        if c.head:
            self.head = Head(c, **kw)

    def _positions(self, ids: jax.Array, position_ids: jax.Array | None, pack_ids: jax.Array | None) -> jax.Array:
        length, rows = ids.shape[1], self.config.max_positions
        if position_ids is not None:
            return position_ids
        if length > rows:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the {rows} positions of this {self.config.family}; cut"
                " it (max_length), or load with encoder_max_position_embeddings or decoder_max_position_embeddings"
            )
        return jnp.arange(length)[None] if pack_ids is None else restarting_positions(pack_ids)

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        *,
        position_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        pack_ids: jax.Array | None = None,
        encoder_states: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
        show: Show = Show(),  # noqa: B008
    ) -> tuple[jax.Array, list[LayerOutput]]:
        """States after the final norm, and what each layer shows; `mask` [batch, length] is true on tokens."""
        x = self.embeddings(ids, self._positions(ids, position_ids, pack_ids), token_type_ids, train=show.train)
        self_mask = None if mask is None else mask.astype(bool)[:, None, None, :]
        if pack_ids is not None:
            self_mask = join(self_mask, (pack_ids[:, :, None] == pack_ids[:, None, :])[:, None])
        if self.config.causal:
            self_mask = join(self_mask, jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))[None, None])
        x, shown = self.layers(x, Context(self_mask, encoder_states, cross_mask), show)
        if self.config.final_norm:
            x = self.final_norm(x)
        return x, shown

    def logits(self, states: jax.Array) -> jax.Array:
        return self.head(states)

    def new_cache(self, encoder_states: jax.Array, cross_mask: jax.Array, beams: int, length: int, dtype) -> Cache:
        """An empty cache for `beams` hypotheses of up to `length` tokens, with the source projected once."""
        c, batch = self.config, encoder_states.shape[0]

        def empty():
            shape = (batch, c.num_heads, length * beams, c.head_dim)
            return constrain(jnp.zeros(shape, dtype), ("batch", "heads", "length", None))

        slots = jnp.arange(beams, dtype=jnp.int32)[None, :, None]
        return Cache(
            keys=tuple(empty() for _ in range(c.num_layers)),
            values=tuple(empty() for _ in range(c.num_layers)),
            cross=self.layers.cross_keys_values(encoder_states),
            cross_mask=cross_mask.astype(bool),
            ancestry=jnp.broadcast_to(slots, (batch, beams, length)),
            index=jnp.zeros((), jnp.int32),
        )

    def decode(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Tokens [batch, beams, count] at the cache's index; returns the states of all of them and the cache."""
        batch, beams, count = tokens.shape
        positions = jnp.tile(cache.index + jnp.arange(count), beams)[None]
        x = self.embeddings(tokens.reshape(batch, beams * count), positions, None, train=False)
        x, cache = self.layers.decode(x, cache, beams)
        if self.config.final_norm:
            x = self.final_norm(x)
        return x.reshape(batch, beams, count, -1), cache


def join(a: jax.Array | None, b: jax.Array) -> jax.Array:
    """Both masks."""
    return b if a is None else a & b
