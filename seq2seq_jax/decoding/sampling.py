"""Greedy search and multinomial sampling (transformers 5's `_sample`)."""

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
    ScoreHistory,
    SearchParams,
    Source,
    gumbel_noise,
    initial_automaton_states,
    is_finished,
    length_penalty,
    make_context,
    next_automaton_states,
    recorded_results,
    row_keys,
    set_token,
)
from seq2seq_jax.models.cpu import top_k


@struct.dataclass
class SamplingState(GrowableState):
    """n independent sequences for each row."""

    sequences: jax.Array  # int32 [batch, n, capacity]
    unfinished: jax.Array  # bool [batch, n]
    length: jax.Array  # int32: tokens so far, prompt included
    automaton_states: dict[str, Any]  # [batch, n, ...]
    score_history: ScoreHistory | None
    log_probs: jax.Array | None = None  # float32 [batch, n]: summed over the tokens, where scores are wanted
    scores: jax.Array | None = None  # float32 [batch, n]: log_probs over the length penalty

    capacity_fills: ClassVar = {"sequences": PAD, "score_history": 0.0}


@dataclass(frozen=True)
class Sampling:
    """Attributes:
    count: sequences a row. do_sample: tokens are drawn, else the best is taken. recorded: see `Strategy`.

    Drawn and recorded sequences have scores, for which it reads search_params.penalties as `BeamSearch` does.
    """

    count: int = 1
    do_sample: bool = False
    recorded: tuple[str, ...] = ()
    lookahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.count

    def init(self, prompt, capacity, step, cache, source, search_params):
        (batch, p), n, vocab = prompt.shape, self.count, step.logits.shape[-1]
        sequences = jnp.full((batch, n, capacity), search_params.pad_id, jnp.int32).at[:, :, :p].set(prompt[:, None, :])
        zeros = jnp.zeros((batch, n)) if self.do_sample or self.recorded else None
        state = SamplingState(
            sequences=sequences,
            unfinished=jnp.ones((batch, n), bool),
            length=jnp.int32(p),
            automaton_states=initial_automaton_states(prompt, n, source, search_params),
            score_history=ScoreHistory.zeros(self.recorded, batch, n, capacity, vocab) if self.recorded else None,
            log_probs=zeros,
            scores=zeros,
        )
        logits = jnp.broadcast_to(step.logits[:, :, -1], (batch, n, vocab))  # slot 0 read the prompt for all n
        return self.append_token(state, logits, source, search_params), cache

    def decoder_inputs(self, state: SamplingState, source: Source) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)  # [batch, n, 1]

    def update(self, state, step, cache, source, search_params):
        return self.append_token(state, step.logits[:, :, -1], source, search_params), cache

    def unfinished_rows(self, state: SamplingState) -> jax.Array:
        return jnp.any(state.unfinished, axis=1)

    def should_continue(self, state: SamplingState, search_params: SearchParams) -> jax.Array:
        return jnp.any(state.unfinished) & (state.length < search_params.max_length)

    def results(self, state: SamplingState) -> dict[str, jax.Array]:
        lengths = jnp.broadcast_to(state.length, state.unfinished.shape[:1])
        scores = {} if state.scores is None else {"scores": state.scores}
        return {"sequences": state.sequences, "lengths": lengths} | scores | recorded_results(state.score_history)

    def append_token(
        self, state: SamplingState, logits: jax.Array, source: Source, search_params: SearchParams
    ) -> SamplingState:
        """The state with one more token for each sequence, chosen from logits [batch, n, vocab]."""
        context = make_context(state.sequences, state.length, state.automaton_states, source, search_params)
        processed = apply_processors(logits, context, search_params.processors)
        scores, history = apply_processors(processed, context, search_params.warpers), state.score_history
        if history is not None:
            history = history.write(state.length, logits=logits, scores=scores)
        if self.do_sample:  # the largest of scores with Gumbel noise is a draw from their softmax
            scores += gumbel_noise(row_keys(search_params, source, state.length), scores.shape)
        tokens = top_k(scores, 1)[1][..., 0]  # [batch, n]
        tokens = jnp.where(state.unfinished, tokens, search_params.pad_id).astype(jnp.int32)
        sequences, length = set_token(state.sequences, tokens, state.length), state.length + 1
        log_probs, final = state.log_probs, state.scores
        if log_probs is not None:
            chosen = jnp.take_along_axis(processed, tokens[:, :, None], axis=-1)[..., 0]  # [batch, n]
            log_probs = log_probs + chosen - jax.nn.logsumexp(processed, axis=-1)
            penalty = length_penalty(length - search_params.prompt_length, search_params)
            final = jnp.where(state.unfinished, log_probs / penalty, final)
        states = next_automaton_states(state.automaton_states, None, tokens, search_params)
        context = make_context(sequences, length, states, source, search_params)
        unfinished = state.unfinished & ~is_finished(context, tokens, search_params)
        return SamplingState(sequences, unfinished, length, states, history, log_probs, final)
