"""Contrastive search (Su et al. 2022): prefers likely tokens whose hidden states differ from those before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.context import apply_processors
from seq2seq_jax.decoding.decode_loop import (
    PAD,
    GrowableState,
    SearchParams,
    Source,
    gather_beams,
    initial_automaton_states,
    is_finished,
    make_context,
    next_automaton_states,
    pad_axis,
    set_token,
)
from seq2seq_jax.models.cpu import top_k


@struct.dataclass
class ContrastiveState(GrowableState):
    """One sequence for each row, and the candidates for its next token."""

    sequences: jax.Array  # int32 [batch, 1, capacity]
    hidden_states: jax.Array  # float32 [batch, 1, capacity, hidden], of norm 1: of the tokens so far
    unfinished: jax.Array  # bool [batch]
    candidates: jax.Array  # int32 [batch, top_k]
    probabilities: jax.Array  # float32 [batch, top_k]: of the candidates
    length: jax.Array  # int32: tokens so far, prompt included
    automaton_states: dict[str, Any]  # [batch, 1, ...]

    capacity_fills: ClassVar = {"sequences": PAD, "hidden_states": 0.0}


@dataclass(frozen=True)
class ContrastiveSearch:
    """Reads search_params.penalties "penalty_alpha". Chooses the candidate with the greatest
    (1 - alpha) * probability - alpha * (greatest cosine similarity with an earlier token).

    Attributes:
      top_k: candidates at each step; each is read by a slot of its own.
    """

    top_k: int
    recorded: ClassVar[tuple[str, ...]] = ()
    lookahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.top_k

    def init(self, prompt, capacity, step, cache, source, search_params):
        batch, p = prompt.shape
        sequences = jnp.full((batch, 1, capacity), search_params.pad_id, jnp.int32).at[:, :, :p].set(prompt[:, None])
        state = ContrastiveState(
            sequences=sequences,
            hidden_states=pad_axis(_unit(step.states), capacity, 0.0, axis=2),
            unfinished=jnp.ones(batch, bool),
            candidates=jnp.zeros((batch, self.top_k), jnp.int32),
            probabilities=jnp.zeros((batch, self.top_k), jnp.float32),
            length=jnp.int32(p),
            automaton_states=initial_automaton_states(prompt, 1, source, search_params),
        )
        return self._with_candidates(state, step.logits[:, :, -1], source, search_params), cache

    def decoder_inputs(self, state: ContrastiveState, source: Source) -> jax.Array:
        return state.candidates[:, :, None]  # [batch, top_k, 1]

    def update(self, state, step, cache, source, search_params):
        new = _unit(step.states[:, :, -1])  # [batch, top_k, hidden]
        similarity = jnp.einsum("bkh,bjh->bkj", new, state.hidden_states[:, 0], precision="highest")
        context = make_context(state.sequences, state.length, state.automaton_states, source, search_params)
        greatest = jnp.max(jnp.where(context.token_mask, similarity, -jnp.inf), axis=-1)  # [batch, top_k]
        alpha = search_params.penalties["penalty_alpha"]
        chosen = jnp.argmax((1 - alpha) * state.probabilities - alpha * greatest, axis=1)[:, None]  # [batch, 1]
        tokens = jnp.where(state.unfinished[:, None], gather_beams(state.candidates, chosen), search_params.pad_id)
        sequences, length = set_token(state.sequences, tokens, state.length), state.length + 1
        automaton_states = next_automaton_states(state.automaton_states, None, tokens, search_params)
        context = make_context(sequences, length, automaton_states, source, search_params)
        hidden = gather_beams(new, chosen)[:, :, None]  # [batch, 1, 1, hidden]
        state = state.replace(
            sequences=sequences,
            hidden_states=jax.lax.dynamic_update_index_in_dim(state.hidden_states, hidden, state.length, axis=2),
            unfinished=state.unfinished & ~is_finished(context, tokens, search_params)[:, 0],
            length=length,
            automaton_states=automaton_states,
        )
        logits = gather_beams(step.logits[:, :, -1], chosen)  # [batch, 1, vocab]
        # All slots continue the one that read the chosen token.
        cache = cache.select(jnp.broadcast_to(chosen, state.candidates.shape))
        return self._with_candidates(state, logits, source, search_params), cache

    def unfinished_rows(self, state: ContrastiveState) -> jax.Array:
        return state.unfinished

    def should_continue(self, state: ContrastiveState, search_params: SearchParams) -> jax.Array:
        return jnp.any(state.unfinished) & (state.length < search_params.max_length)

    def results(self, state: ContrastiveState) -> dict[str, jax.Array]:
        return {"sequences": state.sequences, "lengths": jnp.broadcast_to(state.length, state.unfinished.shape)}

    def _with_candidates(
        self, state: ContrastiveState, logits: jax.Array, source: Source, search_params: SearchParams
    ) -> ContrastiveState:
        """The state with the top_k next tokens of logits [batch, 1, vocab]."""
        context = make_context(state.sequences, state.length, state.automaton_states, source, search_params)
        scores = apply_processors(logits, context, search_params.processors)
        probabilities, candidates = top_k(jax.nn.softmax(scores, axis=-1), self.top_k)  # [batch, 1, top_k]
        return state.replace(candidates=candidates[:, 0].astype(jnp.int32), probabilities=probabilities[:, 0])


def _unit(states: jax.Array) -> jax.Array:
    """States [..., hidden] scaled to norm 1, float32."""
    states = states.astype(jnp.float32)
    return states / jnp.maximum(jnp.linalg.norm(states, axis=-1, keepdims=True), 1e-8)
