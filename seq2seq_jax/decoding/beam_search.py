"""Beam search and beam-sample (transformers 5's `_beam_search`).

One difference: the tail behind a finished hypothesis is the pad token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.context import apply_processors
from seq2seq_jax.decoding.decode_loop import (
    EXCLUDED,
    PAD,
    GrowableState,
    ScoreHistory,
    SearchParams,
    Source,
    gather_beams,
    gumbel_noise,
    initial_automaton_states,
    is_finished,
    length_penalty,
    make_context,
    max_lengths,
    next_automaton_states,
    recorded_results,
    row_keys,
    set_token,
)
from seq2seq_jax.models.cpu import top_k


@struct.dataclass
class BeamState(GrowableState):
    """The running hypotheses and the best finished ones; `capacity` is the static length of the sequences."""

    sequences: jax.Array  # int32 [batch, beams, capacity]: running hypotheses
    scores: jax.Array  # float32 [batch, beams]: their summed log-probabilities
    beam_indices: jax.Array  # int32 [batch, beams, capacity]: which beam wrote each token, -1 where none did
    finished_sequences: jax.Array  # int32 [batch, beams, capacity]: the best finished hypotheses
    finished_scores: jax.Array  # float32 [batch, beams]: summed log-probabilities over the length penalty
    finished_beam_indices: jax.Array  # int32 [batch, beams, capacity]
    is_finished: jax.Array  # bool [batch, beams]: whether the place holds a finished hypothesis
    improvable: jax.Array  # bool [batch]: whether a running hypothesis can still beat a finished one; stays False
    length: jax.Array  # int32: tokens so far, prompt included
    running: jax.Array  # bool: whether the search continues
    automaton_states: dict[str, Any]  # [batch, beams, ...]
    coverage: jax.Array | None  # float32 [batch, beams, source]: summed cross-attention, for the coverage penalty
    score_history: ScoreHistory | None

    capacity_fills: ClassVar = {
        "sequences": PAD,
        "beam_indices": -1,
        "finished_sequences": PAD,
        "finished_beam_indices": -1,
        "score_history": 0.0,
    }


@struct.dataclass
class Candidates:
    """Hypotheses that are one token longer, [batch, m, ...]; `parents` int32 [batch, m] are the beams they continue."""

    sequences: jax.Array
    scores: jax.Array
    beam_indices: jax.Array
    parents: jax.Array
    finished: jax.Array
    automaton_states: dict[str, Any]
    coverage: jax.Array | None


@dataclass(frozen=True)
class BeamSearch:
    """Reads search_params.penalties "length_penalty", or "gnmt_length_penalty" (Wu et al. 2016, eq. 14).

    Attributes:
      num_beams: running hypotheses a row. early_stopping: False, True or "never". do_sample: continuations are drawn.
      use_coverage: whether search_params.penalties has a "coverage_penalty". recorded: see `Strategy`.
      offset, total: where its beams begin among the `total` beams that beam_indices count in a row; None: num_beams.
    """

    num_beams: int
    early_stopping: bool | str = False
    do_sample: bool = False
    use_coverage: bool = False
    recorded: tuple[str, ...] = ()
    offset: int = 0
    total: int | None = None
    lookahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.num_beams

    def init(self, prompt, capacity, step, cache, source, search_params):
        logits, attention = broadcast_to_beams(step, self.num_beams)
        state = self.init_state(prompt, capacity, source, search_params, logits.shape[-1])
        return self._select(state, logits, attention, cache, source, search_params)

    def init_state(
        self, prompt: jax.Array, capacity: int, source: Source, search_params: SearchParams, vocab: int
    ) -> BeamState:
        """The state before the first selection."""
        (batch, p), beams = prompt.shape, self.num_beams
        sequences = jnp.full((batch, beams, capacity), search_params.pad_id, jnp.int32)
        sequences = sequences.at[:, :, :p].set(prompt[:, None, :])
        no_beam = jnp.full((batch, beams, capacity), -1, jnp.int32)
        return BeamState(
            sequences=sequences,
            # Only the first beam counts at first, or all beams would be the same.
            scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, EXCLUDED), (batch, beams)),
            beam_indices=no_beam,
            finished_sequences=sequences,
            finished_scores=jnp.full((batch, beams), EXCLUDED),
            finished_beam_indices=no_beam,
            is_finished=jnp.zeros((batch, beams), bool),
            improvable=jnp.ones(batch, bool),
            length=jnp.int32(p),
            running=jnp.bool_(True),
            automaton_states=initial_automaton_states(prompt, beams, source, search_params),
            coverage=jnp.zeros((batch, beams, source.mask.shape[1]), jnp.float32) if self.use_coverage else None,
            score_history=ScoreHistory.zeros(self.recorded, batch, beams, capacity, vocab) if self.recorded else None,
        )

    def decoder_inputs(self, state: BeamState, source: Source) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)  # [batch, beams, 1]

    def update(self, state, step, cache, source, search_params):
        attention = None if step.attention is None else step.attention[:, :, -1]
        return self._select(state, step.logits[:, :, -1], attention, cache, source, search_params)

    def unfinished_rows(self, state: BeamState) -> jax.Array:
        if self.early_stopping is True:
            return state.improvable & ~jnp.all(state.is_finished, axis=1)
        return state.improvable

    def should_continue(self, state: BeamState, search_params: SearchParams) -> jax.Array:
        return state.running

    def results(self, state: BeamState) -> dict[str, jax.Array]:
        return {
            "sequences": state.finished_sequences,
            "scores": state.finished_scores,
            "beam_indices": state.finished_beam_indices,
            **recorded_results(state.score_history),
        }

    def _select(self, state, logits, attention, cache, source, search_params):
        state, log_probs = self.log_probs(state, logits, attention, source, search_params)
        state, parents = self.select(state, log_probs, source, search_params)
        return state, cache.select(parents)

    def log_probs(self, state: BeamState, logits: jax.Array, attention, source: Source, search_params: SearchParams):
        """The state with the step recorded, and the processed log-probabilities [batch, beams, vocab]."""
        scores = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        context = make_context(state.sequences, state.length, state.automaton_states, source, search_params)
        scores = apply_processors(scores, context, (*search_params.processors, *search_params.warpers))
        if state.score_history is not None:
            state = state.replace(score_history=state.score_history.write(state.length, logits=logits, scores=scores))
        if state.coverage is not None:
            state = state.replace(coverage=state.coverage + attention)
        return state, scores

    def select(
        self, state: BeamState, log_probs: jax.Array, source: Source, search_params: SearchParams
    ) -> tuple[BeamState, jax.Array]:
        """The state after one selection from log-probabilities [batch, beams, vocab], and the parents of its beams,
        int32 [batch, beams]."""
        totals = log_probs + state.scores[:, :, None]
        scores, parents, tokens = self.top_k_continuations(totals, state, source, search_params)
        options = self.extend(state, scores, parents, tokens, source, search_params)
        # The best unfinished candidates run on; of the first num_beams, the finished ones are kept.
        running, chosen = jax.lax.top_k(scores + jnp.where(options.finished, EXCLUDED, 0.0), self.num_beams)
        finishing = options.finished & (jnp.arange(scores.shape[1]) < self.num_beams)
        return self.update_beams(state, options, chosen, running, finishing, source, search_params)

    def top_k_continuations(self, scores: jax.Array, state: BeamState, source: Source, search_params: SearchParams):
        """The candidates of a selection: scores, parents, tokens [batch, count], from scores [batch, beams, vocab]."""
        # Enough that num_beams do not end, whatever end tokens are among them.
        count = max(2, 1 + search_params.eos_ids.shape[0]) * self.num_beams
        if not self.do_sample:
            return top_k_of_beams(scores, count)
        # The best of scores with Gumbel noise are draws without replacement, in the order of drawing.
        noise = gumbel_noise(row_keys(search_params, source, state.length), scores.shape)
        noisy, parents, tokens = top_k_of_beams(scores + noise, count)
        drawn = scores[jnp.arange(len(scores))[:, None], parents, tokens]  # [batch, count]
        return jnp.where(jnp.isneginf(noisy), -jnp.inf, drawn), parents, tokens

    def extend(
        self, state: BeamState, scores, parents, tokens, source: Source, search_params: SearchParams
    ) -> Candidates:
        """The hypotheses that continue `parents` [batch, m] by `tokens` [batch, m]."""
        sequences = set_token(gather_beams(state.sequences, parents), tokens, state.length)  # [batch, m, capacity]
        beam = parents + self.offset + source.row[:, None] * (self.total or self.num_beams)  # over the whole batch
        beam_indices = set_token(gather_beams(state.beam_indices, parents), beam, state.length)
        automaton_states = next_automaton_states(state.automaton_states, parents, tokens, search_params)
        context = make_context(sequences, state.length + 1, automaton_states, source, search_params)
        finished = is_finished(context, tokens, search_params)
        finished |= state.length + 1 >= max_lengths(source, search_params)
        coverage = None if state.coverage is None else gather_beams(state.coverage, parents)
        return Candidates(sequences, scores, beam_indices, parents, finished, automaton_states, coverage)

    def update_beams(
        self,
        state: BeamState,
        options: Candidates,
        chosen: jax.Array,
        scores: jax.Array,
        finishing: jax.Array,
        source: Source,
        search_params: SearchParams,
    ) -> tuple[BeamState, jax.Array]:
        """The state after the options `chosen` [batch, beams] with `scores` run on and those `finishing` [batch, m]
        compete with the finished hypotheses; also the parents of its beams [batch, beams]."""
        final = options.scores / length_penalty(state.length + 1 - search_params.prompt_length, search_params)
        if options.coverage is not None:
            # beta * sum over the source of log(min(coverage, 1)): [batch, m, source] -> [batch, m]
            logs = jnp.log(jnp.clip(options.coverage, jnp.finfo(jnp.float32).tiny, 1.0))
            final += search_params.penalties["coverage_penalty"] * jnp.sum(logs, axis=-1)
        if self.early_stopping is True:
            final += jnp.where(jnp.all(state.is_finished, axis=1, keepdims=True), EXCLUDED, 0.0)
        final += jnp.where(state.improvable[:, None], 0.0, EXCLUDED)
        final += jnp.where(finishing, 0.0, EXCLUDED)
        # The best num_beams of the finished ones and the candidates: [batch, beams + m] -> [batch, beams].
        finished_scores, best = jax.lax.top_k(jnp.concatenate([state.finished_scores, final], axis=1), self.num_beams)

        def merge(old, new):  # [batch, beams, ...], [batch, m, ...] -> [batch, beams, ...]
            return gather_beams(jnp.concatenate([old, new], axis=1), best)

        finished, length = merge(state.is_finished, finishing), state.length + 1
        can_improve = self._can_improve(scores[:, 0], finished_scores, finished, length, source, search_params)
        improvable = state.improvable & can_improve
        if search_params.max_unpadded_length is not None:  # rows reach their greatest lengths at different times
            improvable &= ~jnp.all(options.finished, axis=1)
        running = jnp.any(improvable) & ~jnp.all(options.finished)
        if self.early_stopping is True:
            running &= ~jnp.all(finished)
        new = state.replace(
            sequences=gather_beams(options.sequences, chosen),
            scores=scores,
            beam_indices=gather_beams(options.beam_indices, chosen),
            finished_sequences=merge(state.finished_sequences, options.sequences),
            finished_scores=finished_scores,
            finished_beam_indices=merge(state.finished_beam_indices, options.beam_indices),
            is_finished=finished,
            improvable=improvable,
            length=length,
            running=running,
            automaton_states=jax.tree.map(lambda a: gather_beams(a, chosen), options.automaton_states),
            coverage=None if options.coverage is None else gather_beams(options.coverage, chosen),
        )
        return new, gather_beams(options.parents, chosen)

    def _can_improve(
        self, best_running, finished_scores, finished, length, source: Source, search_params: SearchParams
    ) -> jax.Array:
        """bool [batch]: whether the best running hypothesis, summed log-probability [batch], may still beat the worst
        finished one (torch's heuristic)."""
        generated, penalties = length - search_params.prompt_length, search_params.penalties
        if self.early_stopping == "never":
            power = next(penalties[n] for n in ("gnmt_length_penalty", "length_penalty") if n in penalties)
            longest = max_lengths(source, search_params) - search_params.prompt_length
            generated = jnp.where(power > 0, longest, generated)
        attainable = best_running[:, None] / length_penalty(generated, search_params)  # [batch, 1]
        worst = jnp.where(finished, jnp.min(finished_scores, axis=1, keepdims=True), EXCLUDED)  # [batch, beams]
        return jnp.any(attainable > worst, axis=1)


def broadcast_to_beams(step: Any, n: int) -> tuple[jax.Array, jax.Array | None]:
    """Logits [batch, n, vocab] and attention [batch, n, source] after the prompt, which slot 0 read for all."""

    def last(array):  # [batch, 1, p, ...] -> [batch, n, ...]
        array = array[:, :, -1]
        return jnp.broadcast_to(array, (array.shape[0], n, array.shape[-1]))

    return last(step.logits), None if step.attention is None else last(step.attention)


def top_k_of_beams(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `k` best of scores [batch, beams, vocab] over beams and tokens: scores, beams, tokens [batch, k].

    First the best of each beam, then the best of those: the same as over all at once, ties in the same order.
    """
    batch, _, vocab = scores.shape
    per_beam = min(k, vocab)
    best, tokens = top_k(scores, per_beam)  # [batch, beams, per_beam]
    best, index = jax.lax.top_k(best.reshape(batch, -1), k)  # [batch, k], over beams * per_beam
    return best, index // per_beam, jnp.take_along_axis(tokens.reshape(batch, -1), index, axis=1)
