"""Diverse beam search (Vijayakumar et al. 2018): groups of beams that keep off each other's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.beam_search import Beams, BeamSearch, spread
from seq2seq_jax.decoding.loop import Source, take


@struct.dataclass
class Groups:
    """The state: that of each group's search."""

    groups: tuple[Beams, ...]

    @property
    def length(self) -> jax.Array:
        return self.groups[0].length

    def grown(self, capacity: int, pad_id: jax.Array) -> Groups:
        return Groups(tuple(group.grown(capacity, pad_id) for group in self.groups))


@dataclass(frozen=True)
class DiverseBeamSearch:
    """Every group is a beam search of its own; at each step, in turn, a token loses rules.numbers "diversity_penalty"
    for each time that the groups before chose it (Hamming diversity).

    Attributes:
      num_beams: of all groups. num_groups: divides num_beams. The others: of each `BeamSearch`.
    """

    num_beams: int
    num_groups: int
    early_stopping: bool | str = False
    covered: bool = False
    kept: tuple[str, ...] = ()
    ahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.num_beams

    @property
    def searches(self) -> list[BeamSearch]:
        size = self.num_beams // self.num_groups
        more = {"early_stopping": self.early_stopping, "covered": self.covered, "kept": self.kept}
        return [BeamSearch(size, offset=g * size, total=self.num_beams, **more) for g in range(self.num_groups)]

    def first(self, prompt, capacity, step, cache, source, rules):
        logits, attention = spread(step, self.num_beams)
        groups = [s.begin(prompt, capacity, source, rules, logits.shape[-1]) for s in self.searches]
        return self._chosen(groups, logits, attention, cache, source, rules)

    def tokens(self, state: Groups, source: Source) -> jax.Array:
        return jnp.concatenate([s.tokens(group, source) for s, group in zip(self.searches, state.groups)], axis=1)

    def advance(self, state, step, cache, source, rules):
        attention = None if step.attention is None else step.attention[:, :, -1]
        return self._chosen(state.groups, step.logits[:, :, -1], attention, cache, source, rules)

    def open_rows(self, state: Groups) -> jax.Array:
        return jnp.any(jnp.stack([s.open_rows(group) for s, group in zip(self.searches, state.groups)]), axis=0)

    def running(self, state: Groups, rules) -> jax.Array:
        return jnp.any(jnp.stack([group.running for group in state.groups]))

    def results(self, state: Groups) -> dict[str, jax.Array]:
        each = [s.results(group) for s, group in zip(self.searches, state.groups)]
        out = {name: jnp.concatenate([results[name] for results in each], axis=1) for name in each[0]}
        _, order = jax.lax.top_k(out["scores"], self.num_beams)
        return {name: array if name.startswith("kept_") else take(array, order) for name, array in out.items()}

    def _chosen(self, groups, logits, attention, cache, source, rules):
        batch, _, rows = logits.shape
        used, out, parents = jnp.zeros((batch, 1, rows)), [], []
        for search, group in zip(self.searches, groups):
            mine = slice(search.offset, search.offset + search.num_beams)
            seen = None if attention is None else attention[:, mine]
            group, log_probs = search.log_probs(group, logits[:, mine], seen, source, rules)
            penalised = log_probs - rules.numbers["diversity_penalty"] * used
            group, chosen = search.choose(group, penalised, source, rules)
            tokens = search.tokens(group, source)[:, :, 0]
            used = used.at[jnp.arange(batch)[:, None], 0, tokens].add(1.0)
            out.append(group)
            parents.append(chosen + search.offset)
        return Groups(tuple(out)), cache.select(jnp.concatenate(parents, axis=1))
