"""Diverse beam search (Vijayakumar et al. 2018): groups of beams that avoid each other's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.beam_search import BeamSearch, BeamState, broadcast_to_beams
from seq2seq_jax.decoding.decode_loop import Source, gather_beams


@struct.dataclass
class GroupStates:
    """The state of each group's beam search."""

    groups: tuple[BeamState, ...]

    @property
    def length(self) -> jax.Array:
        return self.groups[0].length

    def grown(self, capacity: int, pad_id: jax.Array) -> GroupStates:
        return GroupStates(tuple(group.grown(capacity, pad_id) for group in self.groups))


@dataclass(frozen=True)
class DiverseBeamSearch:
    """Each group is a beam search of its own. At each step the groups choose in turn, and a token loses
    search_params.penalties "diversity_penalty" for each time that an earlier group chose it (Hamming diversity).

    Attributes:
      num_beams: of all groups. num_groups: divides num_beams. The others: of each `BeamSearch`.
    """

    num_beams: int
    num_groups: int
    early_stopping: bool | str = False
    use_coverage: bool = False
    recorded: tuple[str, ...] = ()
    lookahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.num_beams

    @property
    def searches(self) -> list[BeamSearch]:
        size = self.num_beams // self.num_groups
        options = {
            "early_stopping": self.early_stopping,
            "use_coverage": self.use_coverage,
            "recorded": self.recorded,
            "total": self.num_beams,
        }
        return [BeamSearch(size, offset=group * size, **options) for group in range(self.num_groups)]

    def init(self, prompt, capacity, step, cache, source, search_params):
        logits, attention = broadcast_to_beams(step, self.num_beams)
        groups = [s.init_state(prompt, capacity, source, search_params, logits.shape[-1]) for s in self.searches]
        return self._select(groups, logits, attention, cache, source, search_params)

    def decoder_inputs(self, state: GroupStates, source: Source) -> jax.Array:
        tokens = [s.decoder_inputs(group, source) for s, group in zip(self.searches, state.groups)]
        return jnp.concatenate(tokens, axis=1)  # [batch, num_beams, 1]

    def update(self, state, step, cache, source, search_params):
        attention = None if step.attention is None else step.attention[:, :, -1]
        return self._select(state.groups, step.logits[:, :, -1], attention, cache, source, search_params)

    def unfinished_rows(self, state: GroupStates) -> jax.Array:
        return jnp.any(jnp.stack([s.unfinished_rows(group) for s, group in zip(self.searches, state.groups)]), axis=0)

    def should_continue(self, state: GroupStates, search_params) -> jax.Array:
        return jnp.any(jnp.stack([group.running for group in state.groups]))

    def results(self, state: GroupStates) -> dict[str, jax.Array]:
        each = [s.results(group) for s, group in zip(self.searches, state.groups)]
        out = {name: jnp.concatenate([results[name] for results in each], axis=1) for name in each[0]}
        _, order = jax.lax.top_k(out["scores"], self.num_beams)
        # What is recorded stays in the order of the running hypotheses.
        return {name: a if name.startswith("recorded_") else gather_beams(a, order) for name, a in out.items()}

    def _select(self, groups, logits, attention, cache, source, search_params):
        """One selection by each group; logits [batch, num_beams, vocab], attention [batch, num_beams, source]."""
        batch, _, vocab = logits.shape
        counts, states, parents = jnp.zeros((batch, 1, vocab)), [], []  # how often earlier groups chose each token
        for search, group in zip(self.searches, groups):
            beams = slice(search.offset, search.offset + search.num_beams)
            of_group = None if attention is None else attention[:, beams]
            group, log_probs = search.log_probs(group, logits[:, beams], of_group, source, search_params)
            penalised = log_probs - search_params.penalties["diversity_penalty"] * counts
            group, chosen = search.select(group, penalised, source, search_params)
            tokens = search.decoder_inputs(group, source)[:, :, 0]  # [batch, beams of the group]
            counts = counts.at[jnp.arange(batch)[:, None], 0, tokens].add(1.0)
            states.append(group)
            parents.append(chosen + search.offset)
        return GroupStates(tuple(states)), cache.select(jnp.concatenate(parents, axis=1))
