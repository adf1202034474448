"""Beam search whose outputs contain given words and phrases.

Grid beam search (Hokamp & Liu 2017) with the beams shared out among banks (Post & Vilar 2018): hypotheses that have
come equally far with the constraints compete with each other only, and the best of each bank go on, furthest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from seq2seq_jax.decoding.beam_search import Beams, BeamSearch, best
from seq2seq_jax.decoding.loop import NEVER, Rules, Source, greatest_length

# On the score of a hypothesis that reached the greatest length without all that it should contain.
UNMET = -1.0e6


@dataclass(frozen=True)
class ConstrainedBeamSearch(BeamSearch):
    """Reads rules.automata "constraints" (automata.AhoCorasick). What lacks a constraint does not end before the
    greatest length, and comes last; the result `met` tells.
    """

    def choose(self, state: Beams, log_probs: jax.Array, source: Source, rules: Rules) -> tuple[Beams, jax.Array]:
        automaton = rules.automata["constraints"]
        scores, parents, tokens = self._pool(
            log_probs + state.scores[:, :, None], jnp.asarray(automaton.alphabet), rules
        )
        options = self.extended(state, scores, parents, tokens, source, rules)
        states = options.memory["constraints"]
        met = states.count == automaton.constraints
        last = state.length + 1 >= greatest_length(source, rules)
        # An end before all is said is no continuation at all.
        wrong = options.ends & ~met & ~last
        options = options.replace(scores=jnp.where(wrong, -jnp.inf, scores + jnp.where(met | ~last, 0.0, UNMET)))
        chosen = shared_out(options.scores, automaton.progress(states), ~options.ends, self.num_beams)
        running = jnp.take_along_axis(options.scores + jnp.where(options.ends, NEVER, 0.0), chosen, axis=1)
        running, order = jax.lax.top_k(running, self.num_beams)
        chosen = jnp.take_along_axis(chosen, order, axis=1)
        return self.settled(state, options, chosen, running, options.ends & ~wrong, source, rules)

    def _pool(self, scores: jax.Array, alphabet: jax.Array, rules: Rules) -> tuple[jax.Array, ...]:
        """The best continuations, and all of all beams by tokens of the constraints: scores, parents, tokens."""
        batch, beams, _ = scores.shape
        found = best(scores, max(2, 1 + rules.eos_ids.shape[0]) * beams)
        shape = (batch, beams, alphabet.shape[0])
        parents = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None, :, None], shape).reshape(batch, -1)
        tokens = jnp.broadcast_to(alphabet[None, None], shape).reshape(batch, -1)
        same = (parents[:, :, None] == found[1][:, None]) & (tokens[:, :, None] == found[2][:, None])
        forced = jnp.where(jnp.any(same, axis=-1), -jnp.inf, scores[:, :, alphabet].reshape(batch, -1))
        return tuple(jnp.concatenate(pair, axis=1) for pair in zip(found, (forced, parents, tokens)))

    def results(self, state: Beams) -> dict[str, jax.Array]:
        out = super().results(state)
        met = out["scores"] > UNMET / 2
        return {**out, "met": met, "scores": out["scores"] - jnp.where(met, 0.0, UNMET)}


def shared_out(scores: jax.Array, banks: jax.Array, free: jax.Array, count: int) -> jax.Array:
    """The `count` options [batch, count] that run on: of each bank the best, then of each the second ..., those of
    greater banks first.

    Args:
      scores: float32 [batch, m]. banks: int32 [batch, m], from 0. free: bool [batch, m], which may run on.
    """
    usable = free & (scores > NEVER / 2)
    before = (scores[:, None, :] > scores[:, :, None]) | (
        (scores[:, None, :] == scores[:, :, None])
        & (jnp.arange(scores.shape[1]) < jnp.arange(scores.shape[1])[:, None])
    )
    rank = jnp.sum(before & (banks[:, None, :] == banks[:, :, None]) & usable[:, None, :], axis=-1)
    most = jnp.max(banks) + 1
    order = jnp.where(usable, rank * most + (most - 1 - banks), jnp.iinfo(jnp.int32).max)
    return jax.lax.top_k(-order, count)[1]
