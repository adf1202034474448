"""Prompt-lookup decoding (Saxena 2023): greedy search that drafts tokens by copying from the source.

The last tokens are looked up in the source, and what follows them there is the draft, which is read in one step with
the last token. The drafted tokens that greedy search would have chosen are kept, so the output is greedy search's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from seq2seq_jax.decoding.decode_loop import SearchParams, Source
from seq2seq_jax.decoding.sampling import Sampling, SamplingState


@dataclass(frozen=True)
class PromptLookup:
    """All rows accept as many tokens as the row that accepts the fewest: best with one row.

    Attributes:
      lookahead: drafted tokens. ngram: the most last tokens that are looked up in the source.
    """

    lookahead: int
    ngram: int
    slots: ClassVar[int] = 1
    recorded: ClassVar[tuple[str, ...]] = ()

    def init(self, prompt, capacity, step, cache, source, search_params):
        return Sampling().init(prompt, capacity, step, cache, source, search_params)

    def decoder_inputs(self, state: SamplingState, source: Source) -> jax.Array:
        last = jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)  # [batch, 1, 1]
        return jnp.concatenate([last, self.draft(state, source)[:, None]], axis=2)  # [batch, 1, 1 + lookahead]

    def draft(self, state: SamplingState, source: Source) -> jax.Array:
        """int32 [batch, lookahead]: what follows the first position in the source with the longest match."""
        ids, size = source.ids, source.ids.shape[1]
        real = jnp.where(source.mask, ids, -1)
        position, matched = jnp.zeros(len(ids), jnp.int32), jnp.zeros(len(ids), bool)  # [batch]
        match = jnp.ones(ids.shape, bool)  # [batch, source]: whether the last k tokens end at a position of the source
        for k in range(self.ngram):
            token = jax.lax.dynamic_index_in_dim(state.sequences[:, 0], state.length - 1 - k, axis=1)  # [batch, 1]
            shifted = jnp.pad(real, ((0, 0), (k, 0)), constant_values=-1)[:, :size]  # [batch, source], k to the right
            match &= (shifted == token) & (state.length > k)
            longer = jnp.any(match[:, :-1], axis=1)
            position = jnp.where(longer, jnp.argmax(match[:, :-1], axis=1), position)
            matched |= longer
        after = position[:, None] + 1 + jnp.arange(self.lookahead)  # [batch, lookahead]
        copied = jnp.take_along_axis(ids, jnp.minimum(after, size - 1), axis=1)
        # Without a match any draft is as good.
        return jnp.where(matched[:, None] & (after < size), copied, ids[:, :1])

    def update(self, state: SamplingState, step, cache, source: Source, search_params: SearchParams):
        draft, accepted = self.draft(state, source), jnp.bool_(True)
        for i in range(1 + self.lookahead):
            new = Sampling().append_token(state, step.logits[:, :, i], source, search_params)
            token = jax.lax.dynamic_index_in_dim(new.sequences[:, 0], state.length, axis=1, keepdims=False)  # [batch]
            state = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, state)  # noqa: B023
            if i < self.lookahead:
                right = ~state.unfinished[:, 0] | (token == draft[:, i])
                accepted &= jnp.all(right) & self.should_continue(state, search_params)
        # The next step reads the last token; the keys and values of refused tokens are written over.
        return state, cache.replace(index=state.length - 1)

    def unfinished_rows(self, state: SamplingState) -> jax.Array:
        return Sampling().unfinished_rows(state)

    def should_continue(self, state: SamplingState, search_params: SearchParams) -> jax.Array:
        return Sampling().should_continue(state, search_params)

    def results(self, state: SamplingState) -> dict[str, jax.Array]:
        return Sampling().results(state)
