"""Contrastive search (Su et al. 2022): likely tokens whose states are unlike those before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.logits import process
from seq2seq_jax.decoding.loop import (
    PAD,
    Growing,
    Rules,
    Source,
    begin_memory,
    ends,
    lengthened,
    next_memory,
    put,
    take,
    view_of,
)
from seq2seq_jax.models.cpu import top_k


@struct.dataclass
class Contrasts(Growing):
    """The state: one sequence a row, and the tokens of which one comes next."""

    sequences: jax.Array  # int32 [batch, 1, capacity]
    states: jax.Array  # float32 [batch, 1, capacity, hidden], of length 1: of the tokens so far
    open: jax.Array  # bool [batch]: not ended yet
    candidates: jax.Array  # int32 [batch, k]
    probabilities: jax.Array  # float32 [batch, k]: theirs
    length: jax.Array  # int32: tokens so far, prompt included
    memory: dict[str, Any]  # the automata's states [batch, 1, ...]

    positions: ClassVar = {"sequences": PAD, "states": 0.0}


@dataclass(frozen=True)
class ContrastiveSearch:
    """Reads rules.numbers "penalty_alpha": what a likeness of 1 takes from a probability of 1 - alpha times itself.

    Attributes:
      top_k: tokens that are tried at each step; each is read by a slot of its own.
    """

    top_k: int
    kept: ClassVar[tuple[str, ...]] = ()
    ahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.top_k

    def first(self, prompt, capacity, step, cache, source, rules):
        batch, p = prompt.shape
        sequences = jnp.full((batch, 1, capacity), rules.pad_id, jnp.int32).at[:, :, :p].set(prompt[:, None])
        state = Contrasts(
            sequences=sequences,
            states=lengthened(_unit(step.states), capacity, 0.0, axis=2),
            open=jnp.ones(batch, bool),
            candidates=jnp.zeros((batch, self.top_k), jnp.int32),
            probabilities=jnp.zeros((batch, self.top_k), jnp.float32),
            length=jnp.int32(p),
            memory=begin_memory(prompt, 1, source, rules),
        )
        return self._tried(state, step.logits[:, :, -1], source, rules), cache

    def tokens(self, state: Contrasts, source: Source) -> jax.Array:
        return state.candidates[:, :, None]

    def advance(self, state, step, cache, source, rules):
        new = _unit(step.states[:, :, -1])
        likeness = jnp.einsum("bkh,bjh->bkj", new, state.states[:, 0], precision="highest")
        before = view_of(state.sequences, state.length, state.memory, source, rules).inside
        worst = jnp.max(jnp.where(before, likeness, -jnp.inf), axis=-1)
        alpha = rules.numbers["penalty_alpha"]
        chosen = jnp.argmax((1 - alpha) * state.probabilities - alpha * worst, axis=1)[:, None]
        tokens = jnp.where(state.open[:, None], take(state.candidates, chosen), rules.pad_id)
        length = state.length + 1
        sequences = put(state.sequences, tokens, state.length)
        memory = next_memory(state.memory, None, tokens, rules)
        over = ends(view_of(sequences, length, memory, source, rules), tokens, rules)[:, 0]
        states = jax.lax.dynamic_update_index_in_dim(state.states, take(new, chosen)[:, :, None], state.length, axis=2)
        state = state.replace(sequences=sequences, states=states, open=state.open & ~over, length=length, memory=memory)
        logits = take(step.logits[:, :, -1], chosen)
        # All slots go on from the one that read the chosen token.
        cache = cache.select(jnp.broadcast_to(chosen, state.candidates.shape))
        return self._tried(state, logits, source, rules), cache

    def open_rows(self, state: Contrasts) -> jax.Array:
        return state.open

    def running(self, state: Contrasts, rules: Rules) -> jax.Array:
        return jnp.any(state.open) & (state.length < rules.max_length)

    def results(self, state: Contrasts) -> dict[str, jax.Array]:
        return {"sequences": state.sequences, "lengths": jnp.broadcast_to(state.length, state.open.shape)}

    def _tried(self, state: Contrasts, logits: jax.Array, source: Source, rules: Rules) -> Contrasts:
        """With the tokens to try next, from logits [batch, 1, rows]."""
        view = view_of(state.sequences, state.length, state.memory, source, rules)
        scores = process(logits, view, rules.processors)
        found, candidates = top_k(jax.nn.softmax(scores, axis=-1), self.top_k)
        return state.replace(candidates=candidates[:, 0].astype(jnp.int32), probabilities=found[:, 0])


def _unit(states: jax.Array) -> jax.Array:
    """States [..., hidden] of length 1, float32."""
    states = states.astype(jnp.float32)
    return states / jnp.maximum(jnp.linalg.norm(states, axis=-1, keepdims=True), 1e-8)
