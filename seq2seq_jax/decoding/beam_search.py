"""Beam search and beam-sample (transformers 5's `_beam_search`).

One difference: the tail behind a finished hypothesis is the pad token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.logits import process
from seq2seq_jax.decoding.loop import (
    NEVER,
    PAD,
    Growing,
    Record,
    Rules,
    Source,
    begin_memory,
    ends,
    greatest_length,
    kept_results,
    length_penalty,
    next_memory,
    put,
    row_keys,
    row_noise,
    take,
    view_of,
)
from seq2seq_jax.models.cpu import top_k


@struct.dataclass
class Beams(Growing):
    """The state of a search; `capacity` is the static length of the sequences."""

    sequences: jax.Array  # int32 [batch, beams, capacity]: running hypotheses
    scores: jax.Array  # float32 [batch, beams]: their summed log-probabilities
    parents: jax.Array  # int32 [batch, beams, capacity]: which beam wrote each token, -1 where none did
    done_sequences: jax.Array  # int32 [batch, beams, capacity]: the best finished hypotheses
    done_scores: jax.Array  # float32 [batch, beams]: theirs, length penalty applied
    done_parents: jax.Array  # int32 [batch, beams, capacity]
    done: jax.Array  # bool [batch, beams]: whether the place is taken
    improvable: jax.Array  # bool [batch]: whether a running hypothesis can still beat a finished one; stays False
    length: jax.Array  # int32: tokens so far, prompt included
    running: jax.Array  # bool: whether to go on
    memory: dict[str, Any]  # the automata's states [batch, beams, ...]
    coverage: jax.Array | None  # float32 [batch, beams, source]: attention on the source so far, where it is asked for
    record: Record | None

    positions: ClassVar = {
        "sequences": PAD,
        "parents": -1,
        "done_sequences": PAD,
        "done_parents": -1,
        "record": 0.0,
    }


@struct.dataclass
class Candidates:
    """Hypotheses that are one token longer, [batch, m, ...]; `parents` are those they continue."""

    sequences: jax.Array
    scores: jax.Array
    history: jax.Array
    parents: jax.Array
    ends: jax.Array
    memory: dict[str, Any]
    coverage: jax.Array | None


@dataclass(frozen=True)
class BeamSearch:
    """Reads rules.numbers "length_penalty", or "gnmt_length_penalty" (Wu et al. 2016, eq. 14).

    Attributes:
      num_beams: running hypotheses a row. early_stopping: False, True or "never". do_sample: continuations are drawn.
      covered: there is a "coverage_penalty" among the numbers. kept: what is recorded.
      offset, total: in what beam_indices count, its first beam and all beams of a row; None: num_beams.
    """

    num_beams: int
    early_stopping: bool | str = False
    do_sample: bool = False
    covered: bool = False
    kept: tuple[str, ...] = ()
    offset: int = 0
    total: int | None = None
    ahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.num_beams

    def first(self, prompt, capacity, step, cache, source, rules):
        logits, attention = spread(step, self.num_beams)
        state = self.begin(prompt, capacity, source, rules, logits.shape[-1])
        return self._advanced(state, logits, attention, cache, source, rules)

    def begin(self, prompt: jax.Array, capacity: int, source: Source, rules: Rules, rows: int) -> Beams:
        """The state before any choice."""
        (batch, p), beams = prompt.shape, self.num_beams
        sequences = jnp.full((batch, beams, capacity), rules.pad_id, jnp.int32).at[:, :, :p].set(prompt[:, None, :])
        nobody = jnp.full((batch, beams, capacity), -1, jnp.int32)
        return Beams(
            sequences=sequences,
            # Only the first beam counts at first, or all beams would be the same.
            scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, NEVER), (batch, beams)),
            parents=nobody,
            done_sequences=sequences,
            done_scores=jnp.full((batch, beams), NEVER),
            done_parents=nobody,
            done=jnp.zeros((batch, beams), bool),
            improvable=jnp.ones(batch, bool),
            length=jnp.int32(p),
            running=jnp.bool_(True),
            memory=begin_memory(prompt, beams, source, rules),
            coverage=jnp.zeros((batch, beams, source.mask.shape[1]), jnp.float32) if self.covered else None,
            record=Record.begin(self.kept, batch, beams, capacity, rows) if self.kept else None,
        )

    def tokens(self, state: Beams, source: Source) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)

    def advance(self, state, step, cache, source, rules):
        attention = None if step.attention is None else step.attention[:, :, -1]
        return self._advanced(state, step.logits[:, :, -1], attention, cache, source, rules)

    def open_rows(self, state: Beams) -> jax.Array:
        if self.early_stopping is True:
            return state.improvable & ~jnp.all(state.done, axis=1)
        return state.improvable

    def running(self, state: Beams, rules: Rules) -> jax.Array:
        return state.running

    def results(self, state: Beams) -> dict[str, jax.Array]:
        done = {"sequences": state.done_sequences, "scores": state.done_scores, "parents": state.done_parents}
        return done | kept_results(state.record)

    def _advanced(self, state, logits, attention, cache, source, rules):
        state, log_probs = self.log_probs(state, logits, attention, source, rules)
        state, chosen = self.choose(state, log_probs, source, rules)
        return state, cache.select(chosen)

    def choose(self, state: Beams, log_probs: jax.Array, source: Source, rules: Rules) -> tuple[Beams, jax.Array]:
        """One selection from log-probabilities [batch, beams, rows]; also the parents of its beams [batch, beams]."""
        scores, parents, tokens = self.candidates(log_probs + state.scores[:, :, None], state, source, rules)
        options = self.extended(state, scores, parents, tokens, source, rules)
        # The best that do not end run on; of those that end, the first num_beams may finish.
        running, chosen = jax.lax.top_k(scores + jnp.where(options.ends, NEVER, 0.0), self.num_beams)
        finishing = options.ends & (jnp.arange(scores.shape[1]) < self.num_beams)
        return self.settled(state, options, chosen, running, finishing, source, rules)

    def log_probs(self, state: Beams, logits: jax.Array, attention, source: Source, rules: Rules):
        """Processed log-probabilities [batch, beams, rows], and the state with what they leave in it."""
        scores = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        view = view_of(state.sequences, state.length, state.memory, source, rules)
        scores = process(scores, view, (*rules.processors, *rules.warpers))
        if state.record is not None:
            state = state.replace(record=state.record.at(state.length, logits=logits, scores=scores))
        if state.coverage is not None:
            state = state.replace(coverage=state.coverage + attention)
        return state, scores

    def candidates(self, scores: jax.Array, state: Beams, source: Source, rules: Rules):
        """Scores, parents, tokens [batch, count] of the continuations to choose from; scores [batch, beams, rows]."""
        count = max(2, 1 + rules.eos_ids.shape[0]) * self.num_beams
        if not self.do_sample:
            return best(scores, count)
        # Gumbel noise on the scores makes the best ones draws without replacement, in the order of drawing.
        noise = row_noise(row_keys(rules, source, state.length), scores.shape)
        noisy, parents, tokens = best(scores + noise, count)
        at = jnp.arange(len(scores))[:, None]
        drawn = scores[at, parents, tokens]
        return jnp.where(jnp.isneginf(noisy), -jnp.inf, drawn), parents, tokens

    def extended(self, state: Beams, scores, parents, tokens, source: Source, rules: Rules) -> Candidates:
        """The hypotheses that continue `parents` [batch, m] by `tokens` [batch, m]."""
        sequences = put(take(state.sequences, parents), tokens, state.length)
        flat = parents + self.offset + source.row[:, None] * (self.total or self.num_beams)
        history = put(take(state.parents, parents), flat, state.length)
        memory = next_memory(state.memory, parents, tokens, rules)
        view = view_of(sequences, state.length + 1, memory, source, rules)
        over = ends(view, tokens, rules) | (state.length + 1 >= greatest_length(source, rules))
        coverage = None if state.coverage is None else take(state.coverage, parents)
        return Candidates(sequences, scores, history, parents, over, memory, coverage)

    def settled(
        self,
        state: Beams,
        options: Candidates,
        chosen: jax.Array,
        scores: jax.Array,
        finishing: jax.Array,
        source: Source,
        rules: Rules,
    ) -> tuple[Beams, jax.Array]:
        """The state after the options `chosen` [batch, beams], with `scores`, run on and those `finishing` finish."""
        final = options.scores / self.penalty(state.length + 1 - rules.prompt_length, rules)
        if options.coverage is not None:
            final += self.coverage_penalty(options.coverage, rules)
        if self.early_stopping is True:
            final += jnp.where(jnp.all(state.done, axis=1, keepdims=True), NEVER, 0.0)
        final += jnp.where(state.improvable[:, None], 0.0, NEVER)
        final += jnp.where(finishing, 0.0, NEVER)
        done_scores, kept = jax.lax.top_k(jnp.concatenate([state.done_scores, final], axis=1), self.num_beams)

        def merged(old, new):
            return take(jnp.concatenate([old, new], axis=1), kept)

        done, length = merged(state.done, finishing), state.length + 1
        improvable = state.improvable & self._can_improve(scores[:, 0], done_scores, done, length, source, rules)
        if rules.own_length is not None:  # rows reach their greatest lengths at different times
            improvable &= ~jnp.all(options.ends, axis=1)
        running = jnp.any(improvable) & ~jnp.all(options.ends)
        if self.early_stopping is True:
            running &= ~jnp.all(done)
        new = state.replace(
            sequences=take(options.sequences, chosen),
            scores=scores,
            parents=take(options.history, chosen),
            done_sequences=merged(state.done_sequences, options.sequences),
            done_scores=done_scores,
            done_parents=merged(state.done_parents, options.history),
            done=done,
            improvable=improvable,
            length=length,
            running=running,
            memory=jax.tree.map(lambda a: take(a, chosen), options.memory),
            coverage=None if options.coverage is None else take(options.coverage, chosen),
        )
        return new, take(options.parents, chosen)

    def penalty(self, generated: jax.Array, rules: Rules) -> jax.Array:
        """By what the summed log-probabilities of `generated` tokens are divided."""
        return length_penalty(generated, rules)

    def coverage_penalty(self, coverage: jax.Array, rules: Rules) -> jax.Array:
        """beta * sum over the source of log(min(attention, 1)), [batch, m], from coverage [batch, m, source]."""
        logs = jnp.log(jnp.clip(coverage, jnp.finfo(jnp.float32).tiny, 1.0))
        return rules.numbers["coverage_penalty"] * jnp.sum(logs, axis=-1)

    def _can_improve(self, best_running, done_scores, done, length, source: Source, rules: Rules) -> jax.Array:
        """Whether the best running hypothesis [batch] may still beat the worst finished one (torch's heuristic)."""
        reach = length - rules.prompt_length
        if self.early_stopping == "never":
            power = next(rules.numbers[n] for n in ("gnmt_length_penalty", "length_penalty") if n in rules.numbers)
            reach = jnp.where(power > 0, greatest_length(source, rules) - rules.prompt_length, reach)
        hoped = best_running[:, None] / self.penalty(reach, rules)
        worst = jnp.where(done, jnp.min(done_scores, axis=1, keepdims=True), NEVER)
        return jnp.any(hoped > worst, axis=1)


def spread(step: Any, n: int) -> tuple[jax.Array, jax.Array | None]:
    """Logits [batch, n, rows] and attention [batch, n, source] behind the prompt, which one slot read."""

    def each(array):
        last = array[:, :, -1]
        return jnp.broadcast_to(last, (last.shape[0], n, last.shape[-1]))

    return each(step.logits), None if step.attention is None else each(step.attention)


def best(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `count` best of scores [batch, beams, rows] over beams and tokens: scores, beams, tokens [batch, count].

    Best of each beam first, then of those: the same as over all at once, ties in the same order.
    """
    batch, _, rows = scores.shape
    per_beam = min(count, rows)
    found, tokens = top_k(scores, per_beam)
    found, index = jax.lax.top_k(found.reshape(batch, -1), count)
    return found, index // per_beam, jnp.take_along_axis(tokens.reshape(batch, -1), index, axis=1)
