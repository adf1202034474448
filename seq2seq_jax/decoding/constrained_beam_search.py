"""Beam search whose outputs contain given words and phrases.

Grid beam search (Hokamp & Liu 2017) with dynamic beam allocation (Post & Vilar 2018): hypotheses that have made equal
progress with the constraints form a bank and compete with each other only; the beams go to the banks in turn, the bank
with the most progress first.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from seq2seq_jax.decoding.beam_search import BeamSearch, BeamState, top_k_of_beams
from seq2seq_jax.decoding.decode_loop import EXCLUDED, SearchParams, Source, max_lengths

# Added to the score of a hypothesis that reached the greatest length with constraints unmet.
UNMET = -1.0e6


@dataclass(frozen=True)
class ConstrainedBeamSearch(BeamSearch):
    """Reads search_params.automata "constraints" (automata.AhoCorasick). A hypothesis with unmet constraints does not
    end before the greatest length, and comes last; the result `met`, bool [batch, beams], tells.
    """

    def select(
        self, state: BeamState, log_probs: jax.Array, source: Source, search_params: SearchParams
    ) -> tuple[BeamState, jax.Array]:
        automaton = search_params.automata["constraints"]
        scores, parents, tokens = self._candidates(
            log_probs + state.scores[:, :, None], jnp.asarray(automaton.alphabet), search_params
        )
        options = self.extend(state, scores, parents, tokens, source, search_params)
        states = options.automaton_states["constraints"]
        met = states.count == automaton.constraints
        last = state.length + 1 >= max_lengths(source, search_params)
        # An end with constraints unmet is no continuation, but at the greatest length.
        too_early = options.finished & ~met & ~last
        scores = jnp.where(too_early, -jnp.inf, scores + jnp.where(met | ~last, 0.0, UNMET))
        options = options.replace(scores=scores)
        chosen = allocate_beams(scores, automaton.progress(states), ~options.finished, self.num_beams)
        running = jnp.take_along_axis(scores + jnp.where(options.finished, EXCLUDED, 0.0), chosen, axis=1)
        running, order = jax.lax.top_k(running, self.num_beams)  # best first
        chosen = jnp.take_along_axis(chosen, order, axis=1)
        return self.update_beams(state, options, chosen, running, options.finished & ~too_early, source, search_params)

    def _candidates(self, scores: jax.Array, alphabet: jax.Array, search_params: SearchParams) -> tuple[jax.Array, ...]:
        """The best continuations of scores [batch, beams, vocab], and those of every beam by each token of the
        constraints: scores, parents, tokens [batch, m]."""
        batch, beams, _ = scores.shape
        best = top_k_of_beams(scores, max(2, 1 + search_params.eos_ids.shape[0]) * beams)
        shape = (batch, beams, alphabet.shape[0])
        parents = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None, :, None], shape).reshape(batch, -1)
        tokens = jnp.broadcast_to(alphabet[None, None], shape).reshape(batch, -1)  # [batch, beams * alphabet]
        # [batch, beams * alphabet, count]: what is among the best already does not count again.
        same = (parents[:, :, None] == best[1][:, None]) & (tokens[:, :, None] == best[2][:, None])
        forced = jnp.where(jnp.any(same, axis=-1), -jnp.inf, scores[:, :, alphabet].reshape(batch, -1))
        return tuple(jnp.concatenate(pair, axis=1) for pair in zip(best, (forced, parents, tokens)))

    def results(self, state: BeamState) -> dict[str, jax.Array]:
        out = super().results(state)
        met = out["scores"] > UNMET / 2
        return {**out, "met": met, "scores": out["scores"] - jnp.where(met, 0.0, UNMET)}


def allocate_beams(scores: jax.Array, banks: jax.Array, unfinished: jax.Array, count: int) -> jax.Array:
    """The indices [batch, count] of the candidates that run on: the best of each bank, then the second of each, and so
    on, greater banks first.

    Args:
      scores: float32 [batch, m]. banks: int32 [batch, m], from 0. unfinished: bool [batch, m], those that may run on.
    """
    eligible = unfinished & (scores > EXCLUDED / 2)
    position = jnp.arange(scores.shape[1])
    # better[b, i, j]: candidate j comes before candidate i.
    better = (scores[:, None, :] > scores[:, :, None]) | (
        (scores[:, None, :] == scores[:, :, None]) & (position < position[:, None])
    )
    rank = jnp.sum(better & (banks[:, None, :] == banks[:, :, None]) & eligible[:, None, :], axis=-1)  # [batch, m]
    num_banks = jnp.max(banks) + 1
    order = jnp.where(eligible, rank * num_banks + (num_banks - 1 - banks), jnp.iinfo(jnp.int32).max)
    return jax.lax.top_k(-order, count)[1]
