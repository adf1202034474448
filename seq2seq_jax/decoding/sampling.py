"""Greedy search and multinomial sampling (transformers 5's `_sample`)."""

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
    Record,
    Rules,
    Source,
    begin_memory,
    ends,
    kept_results,
    length_penalty,
    next_memory,
    put,
    row_keys,
    row_noise,
    view_of,
)
from seq2seq_jax.models.cpu import top_k


@struct.dataclass
class Samples(Growing):
    """The state: n sequences a row, each on its own."""

    sequences: jax.Array  # int32 [batch, n, capacity]
    open: jax.Array  # bool [batch, n]: not ended yet
    length: jax.Array  # int32: tokens so far, prompt included
    memory: dict[str, Any]  # the automata's states [batch, n, ...]
    record: Record | None
    sums: jax.Array | None = None  # float32 [batch, n]: summed log-probabilities, where they are wanted
    scores: jax.Array | None = None  # float32 [batch, n]: these, length penalty applied

    positions: ClassVar = {"sequences": PAD, "record": 0.0}


@dataclass(frozen=True)
class Sampling:
    """Attributes:
    count: sequences a row. do_sample: tokens are drawn, else the best is taken. kept: what is recorded.

    Drawn sequences, and recorded ones, have scores, for which it reads rules.numbers as `BeamSearch` does.
    """

    count: int = 1
    do_sample: bool = False
    kept: tuple[str, ...] = ()
    ahead: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.count

    def first(self, prompt, capacity, step, cache, source, rules):
        (batch, p), n, rows = prompt.shape, self.count, step.logits.shape[-1]
        sequences = jnp.full((batch, n, capacity), rules.pad_id, jnp.int32).at[:, :, :p].set(prompt[:, None, :])
        record = Record.begin(self.kept, batch, n, capacity, rows) if self.kept else None
        opened = jnp.ones((batch, n), bool)
        zeros = jnp.zeros((batch, n)) if self.do_sample or self.kept else None
        state = Samples(
            sequences, opened, jnp.int32(p), begin_memory(prompt, n, source, rules), record, sums=zeros, scores=zeros
        )
        return self.chosen(state, jnp.broadcast_to(step.logits[:, :, -1], (batch, n, rows)), source, rules), cache

    def tokens(self, state: Samples, source: Source) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(state.sequences, state.length - 1, axis=2)

    def advance(self, state, step, cache, source, rules):
        return self.chosen(state, step.logits[:, :, -1], source, rules), cache

    def open_rows(self, state: Samples) -> jax.Array:
        return jnp.any(state.open, axis=1)

    def running(self, state: Samples, rules: Rules) -> jax.Array:
        return jnp.any(state.open) & (state.length < rules.max_length)

    def results(self, state: Samples) -> dict[str, jax.Array]:
        lengths = jnp.broadcast_to(state.length, state.open.shape[:1])
        scores = {} if state.scores is None else {"scores": state.scores}
        return {"sequences": state.sequences, "lengths": lengths} | scores | kept_results(state.record)

    def chosen(self, state: Samples, logits: jax.Array, source: Source, rules: Rules) -> Samples:
        """The state with one more token each, from logits [batch, n, rows]."""
        view = view_of(state.sequences, state.length, state.memory, source, rules)
        processed = process(logits, view, rules.processors)
        scores, record = process(processed, view, rules.warpers), state.record
        if record is not None:
            record = record.at(state.length, logits=logits, scores=scores)
        if self.do_sample:
            scores += row_noise(row_keys(rules, source, state.length), scores.shape)
        tokens = jnp.where(state.open, top_k(scores, 1)[1][..., 0], rules.pad_id).astype(jnp.int32)
        sequences, length = put(state.sequences, tokens, state.length), state.length + 1
        sums, totals = state.sums, state.scores
        if sums is not None:
            found = jnp.take_along_axis(processed, tokens[:, :, None], axis=-1)[..., 0]
            sums = sums + found - jax.nn.logsumexp(processed, axis=-1)
            totals = jnp.where(state.open, sums / length_penalty(length - rules.prompt_length, rules), totals)
        memory = next_memory(state.memory, None, tokens, rules)
        over = ends(view_of(sequences, length, memory, source, rules), tokens, rules)
        return Samples(sequences, state.open & ~over, length, memory, record, sums, totals)
