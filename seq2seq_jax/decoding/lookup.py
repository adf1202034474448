"""Greedy search that guesses ahead by copying from the source (prompt-lookup decoding, Saxena 2023).

What the last tokens were followed by in the source is read in one step with them; as far as greedy search would have
chosen the same, it stands. So the output is greedy search's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from seq2seq_jax.decoding.loop import Rules, Source
from seq2seq_jax.decoding.sampling import Samples, Sampling


@dataclass(frozen=True)
class PromptLookup:
    """Rows go on together, by what the least lucky open row accepts: best with one row.

    Attributes:
      ahead: tokens that are guessed. ngram: the most last tokens that are looked for in the source.
    """

    ahead: int
    ngram: int
    slots: ClassVar[int] = 1
    kept: ClassVar[tuple[str, ...]] = ()

    def first(self, prompt, capacity, step, cache, source, rules):
        return Sampling().first(prompt, capacity, step, cache, source, rules)

    def tokens(self, state: Samples, source: Source) -> jax.Array:
        last = jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)
        return jnp.concatenate([last, self.guesses(state, source)[:, None]], axis=2)

    def guesses(self, state: Samples, source: Source) -> jax.Array:
        """int32 [batch, ahead]: what follows the first place in the source with the most of the last tokens."""
        ids, size = source.ids, source.ids.shape[1]
        real = jnp.where(source.mask, ids, -1)
        place, found = jnp.zeros(len(ids), jnp.int32), jnp.zeros(len(ids), bool)
        match = jnp.ones(ids.shape, bool)  # whether the last k tokens end at a place of the source
        for k in range(self.ngram):
            token = jax.lax.dynamic_index_in_dim(state.sequences[:, 0], state.length - 1 - k, axis=1)
            shifted = jnp.pad(real, ((0, 0), (k, 0)), constant_values=-1)[:, :size]
            match &= (shifted == token) & (state.length > k)
            here = jnp.any(match[:, :-1], axis=1)
            place = jnp.where(here, jnp.argmax(match[:, :-1], axis=1), place)
            found |= here
        at = place[:, None] + 1 + jnp.arange(self.ahead)
        copied = jnp.take_along_axis(ids, jnp.minimum(at, size - 1), axis=1)
        # Where nothing is found the guess is as good as any.
        return jnp.where(found[:, None] & (at < size), copied, ids[:, :1])

    def advance(self, state: Samples, step, cache, source: Source, rules: Rules):
        guesses, stands = self.guesses(state, source), jnp.bool_(True)
        for i in range(1 + self.ahead):
            new = Sampling().chosen(state, step.logits[:, :, i], source, rules)
            token = jax.lax.dynamic_index_in_dim(new.sequences[:, 0], state.length, axis=1, keepdims=False)
            state = jax.tree.map(lambda a, b: jnp.where(stands, a, b), new, state)  # noqa: B023
            if i < self.ahead:
                right = ~state.open[:, 0] | (token == guesses[:, i])
                stands &= jnp.all(right) & self.running(state, rules)
        # The next step reads the last token; what was guessed wrong is written over.
        return state, cache.replace(index=state.length - 1)

    def open_rows(self, state: Samples) -> jax.Array:
        return Sampling().open_rows(state)

    def running(self, state: Samples, rules: Rules) -> jax.Array:
        return Sampling().running(state, rules)

    def results(self, state: Samples) -> dict[str, jax.Array]:
        return Sampling().results(state)
