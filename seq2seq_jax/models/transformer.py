"""One transformer: embeddings, layers, final norm, head. Encoder or decoder by its config alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.config import TransformerConfig, check
from seq2seq_jax.models.cache import Cache
from seq2seq_jax.models.kernels import SegmentIds, segment_ids, takes_segment_ids
from seq2seq_jax.models.layers import Embeddings, Head, Norm, TransformerModule
from seq2seq_jax.models.positions import RelativePositionBias, RelativePositionTable, rotations
from seq2seq_jax.models.stack import LayerContext, LayerOutput, OutputFlags, Stack
from seq2seq_jax.models.targets import pack_begins
from seq2seq_jax.parallel.axes import constrain


def count_positions(real: jax.Array, pack_ids: jax.Array | None) -> jax.Array:
    """Positions [batch, length] that count the `real` tokens from 0, anew in each pack; -1 for the others."""
    real = real.astype(jnp.int32)
    count = jnp.cumsum(real, axis=1)
    if pack_ids is not None:
        before = jnp.where(pack_begins(pack_ids), count - real, 0)
        count = count - jax.lax.cummax(before, axis=1)
    return count * real - 1


def check_length(config: TransformerConfig, length: int) -> None:
    """A sequence longer than the transformer takes is an error that says what to do."""
    check(
        length <= config.max_positions,
        f"a sequence of {length} tokens is longer than the {config.max_positions} positions of this {config.family};"
        " cut it (max_length), or load with encoder_max_position_embeddings or decoder_max_position_embeddings",
    )
    if config.length_limit is not None:
        most, remedy = config.length_limit
        check(length <= most, f"a sequence of {length} tokens is longer than {most}: {remedy}")


def _longest(length: int, pack_ids: jax.Array | None) -> int:
    """Tokens of the longest sequence in rows of `length`; 0 where packs are traced, and so unknown."""
    if pack_ids is None:
        return length
    if isinstance(pack_ids, jax.core.Tracer):
        return 0
    return max((int(np.bincount(row)[1:].max(initial=0)) for row in np.asarray(pack_ids)), default=0)


class Transformer(TransformerModule):
    """Ids [batch, length] to states [batch, length, hidden], and states to logits [..., padded_vocab_size]."""

    unrolled: bool = False
    remat: str = "none"
    attention_impl: str = "xla"
    scan_unroll: int = 1

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embeddings = Embeddings(c, **kw)
        if c.relative_bias is not None and not c.relative_bias.per_layer:
            self.relative_bias = RelativePositionBias(c, **kw)
        if c.disentangled is not None:
            self.relative_table = RelativePositionTable(c, **kw)
        form = {name: getattr(self, name) for name in ("unrolled", "remat", "attention_impl", "scan_unroll")}
        self.layers = Stack(c, outputs_first=self.outputs_first, **form, **kw)
        if c.final_norm:
            self.final_norm = Norm(c, **kw)
        if c.head:
            self.head = Head(c, **kw)

    def _positions(self, ids: jax.Array | None, length: int, mask, position_ids, pack_ids) -> jax.Array:
        """[batch or 1, length]; without ids nothing is known to be a pad token (as in torch)."""
        c = self.config
        if position_ids is not None:  # as torch counts them, from the pad token's row on
            return position_ids if c.position_pad_id is None else position_ids - c.position_offset
        check_length(c, _longest(length, pack_ids))
        if c.position_pad_id is not None and ids is not None:
            return count_positions(ids != c.position_pad_id, pack_ids)
        if c.positions_from_mask and mask is not None:
            return count_positions(mask, pack_ids)
        if pack_ids is None:
            return jnp.arange(length)[None]
        # A tail may be longer than there are positions: all of it has the first.
        return jnp.maximum(count_positions(pack_ids > 0, pack_ids), 0)

    def _context(self, positions: jax.Array, queries: jax.Array, keys: jax.Array, masks: tuple, **more) -> LayerContext:
        """What the layers share, of positions [batch, length]; `queries` and `keys` are for relative biases."""
        c = self.config
        shared = c.relative_bias is not None and not c.relative_bias.per_layer
        return LayerContext(
            self_masks=masks,
            rotations=rotations(c.rotaries, positions),
            positions=(queries, keys),
            bias=self.relative_bias(queries, keys) if shared else None,
            position_table=None if c.disentangled is None else self.relative_table(),
            **more,
        )

    def __call__(
        self,
        ids: jax.Array | None,
        mask: jax.Array | None = None,
        *,
        embeds: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        pack_ids: jax.Array | None = None,
        encoder_states: jax.Array | None = None,
        cross_mask: jax.Array | SegmentIds | None = None,
        flags: OutputFlags = OutputFlags(),
    ) -> tuple[jax.Array, list[LayerOutput]]:
        """States after the final norm, and what each layer shows; `mask` [batch, length] is true on tokens, `embeds`
        [batch, length, embedding_size] stand in for the rows of ids, which are None then."""
        shape = (ids if embeds is None else embeds).shape[:2]
        given = mask, position_ids, token_type_ids, pack_ids  # lists and torch's tensors too
        mask, position_ids, token_type_ids, pack_ids = (None if a is None else jnp.asarray(a) for a in given)
        c, index = self.config, jnp.arange(shape[1])
        positions = self._positions(ids, shape[1], mask, position_ids, pack_ids)
        x = self.embeddings(ids, positions, token_type_ids, embeds=embeds, train=flags.train)
        masks = self._masks(shape, mask, pack_ids)
        if c.merged_attention and not takes_segment_ids(self.attention_impl):  # these refuse merged attention
            joint = (*shape, encoder_states.shape[1])
            masks = tuple(_concatenate_masks(each, cross_mask, joint) for each in masks)
        context = self._context(positions, index, index, masks, encoder_states=encoder_states, cross_mask=cross_mask)
        x, layer_outputs = self.layers(x, context, flags)
        if c.final_norm:
            x = self.final_norm(x)
        return x, layer_outputs

    def _masks(self, shape: tuple[int, int], mask: jax.Array | None, pack_ids: jax.Array | None) -> tuple:
        """Who sees whom in self-attention, for each of the config's windows."""
        c, index = self.config, jnp.arange(shape[1])
        if takes_segment_ids(self.attention_impl):
            return (segment_ids(shape, shape, mask, pack_ids, pack_ids),) * len(c.windows)
        self_mask = None if mask is None else mask.astype(bool)[:, None, None, :]
        if pack_ids is not None:
            self_mask = combine_masks(self_mask, (pack_ids[:, :, None] == pack_ids[:, None, :])[:, None])
        distance = (index[:, None] - index[None, :])[None, None]
        if c.causal:
            self_mask = combine_masks(self_mask, distance >= 0)
        return tuple(self_mask if w is None else combine_masks(self_mask, _within(distance, w)) for w in c.windows)

    def logits(self, states: jax.Array) -> jax.Array:
        return self.head(states)

    def new_cache(self, cross: tuple, cross_mask: jax.Array, beams: int, length: int, dtype) -> Cache:
        """An empty cache for `beams` hypotheses of up to `length` tokens; `cross` are the source's keys and values."""
        c, batch = self.config, cross_mask.shape[0]

        def empty(*shape):
            return constrain(jnp.zeros((batch, c.num_kv_heads, *shape), dtype), ("batch", "heads", None, None))

        slots = jnp.arange(beams, dtype=jnp.int32)[None, :, None]
        return Cache(
            keys=tuple(empty(c.head_dim, length * beams) for _ in range(c.num_layers)),
            values=tuple(empty(length * beams, c.head_dim) for _ in range(c.num_layers)),
            cross=cross,
            cross_mask=cross_mask.astype(bool),
            ancestry=jnp.broadcast_to(slots, (batch, beams, length)),
            index=jnp.zeros((), jnp.int32),
            uncounted=None if c.position_pad_id is None else jnp.zeros((batch, 1), jnp.int32),
        )

    def decode(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, jax.Array | None, Cache]:
        """Tokens [batch, beams, count] at the cache's index.

        Returns:
          Their states [batch, beams, count, hidden]; the weights on the source of the last layer that has any,
          [batch, heads, beams, count, source]; the longer cache.
        """
        c, (batch, beams, count) = self.config, tokens.shape
        queries = jnp.tile(cache.index + jnp.arange(count), beams)
        positions, real = queries[None], jnp.ones((), bool)
        if cache.begins is not None:  # rows that are done may go on beyond the last position
            positions = jnp.clip(queries - cache.begins, 0, c.max_positions - 1)
            real = (cache.index + jnp.arange(count) >= cache.begins)[:, None]
        if c.position_pad_id is not None:
            real = (real & (tokens != c.position_pad_id)).astype(jnp.int32)  # [batch, beams, count]
            before = cache.index - cache.uncounted[:, :, None]
            positions = ((jnp.cumsum(real, axis=2) + before) * real - 1).reshape(batch, beams * count)
            positions = positions if cache.begins is None else jnp.minimum(positions, c.max_positions - 1)
            pads = count - jnp.sum(real[:, :1], axis=2)
            cache = cache.replace(uncounted=jnp.where(cache.index == 0, pads, cache.uncounted))
        x = self.embeddings(tokens.reshape(batch, beams * count), positions, None, train=False)
        keys = jnp.arange(cache.length * cache.num_beams) // cache.num_beams
        masks = tuple(cache.visible(beams, count, window and window[0]) for window in c.windows)
        x, weights, cache = self.layers.decode(x, cache, beams, self._context(positions, queries, keys, masks))
        if c.final_norm:
            x = self.final_norm(x)
        if weights is not None:
            weights = weights.reshape(batch, -1, beams, count, weights.shape[-1])
        return x.reshape(batch, beams, count, -1), weights, cache


def _within(distance: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Whether a key at query - distance is in the window."""
    return (distance <= window[0]) & (-distance <= window[1])


def _concatenate_masks(own: jax.Array | None, cross: jax.Array | None, shape: tuple[int, int, int]) -> jax.Array:
    """Both side by side, bool [batch, 1, queries, queries + source]; `shape` is (batch, queries, source)."""
    batch, queries, source = shape
    full = lambda mask, keys: jnp.broadcast_to(True if mask is None else mask, (batch, 1, queries, keys))
    return jnp.concatenate([full(own, queries), full(cross, source)], axis=-1)


def combine_masks(a: jax.Array | None, b: jax.Array) -> jax.Array:
    """Both masks."""
    return b if a is None else a & b
