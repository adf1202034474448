"""The host's side of the decode loop: compiled functions, called in segments.

`prefill` encodes the source and reads the prompt, `decode_segment` runs the loop of `decoding/decode_loop.py`,
`resize` gives the cache more room or drops finished rows. Each is compiled once for shapes and types of processors.
The cache starts small and doubles, so that short outputs do not pay for long ones; with `compact`, finished rows leave
for a smaller batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from seq2seq_jax.decoding import decode_loop
from seq2seq_jax.decoding.decode_loop import Carry, SearchParams, Source, Strategy
from seq2seq_jax.models import cpu
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.parallel.multihost import to_host

# Capacities are multiples of BUCKET tokens. The first is FIRST_CAPACITY, or what the greatest length needs if less.
BUCKET, FIRST_CAPACITY = 32, 64
# Finished rows leave when at most 1 / SHRINK of the rows are unfinished.
SHRINK = 4
# Tokens between two readings of the clock, or two calls of a callback.
TICK = 8


@dataclass(frozen=True)
class DecodingJob:
    """A batch to decode.

    Attributes:
      model, params: in decoding form.
      encoder_inputs: by name, what the model's `encode` takes beside ids and mask.
      prompt: int32 [batch, p].
    """

    model: EncoderDecoder
    strategy: Strategy
    params: Any
    source: Source
    encoder_inputs: Mapping[str, Any]
    prompt: np.ndarray
    search_params: SearchParams

    @property
    def max_capacity(self) -> int:
        """The greatest capacity, in tokens, that the cache may need."""
        return cache_capacity(self.strategy, int(self.search_params.max_length))

    @property
    def first_capacity(self) -> int:
        """The capacity, in tokens, that the cache starts with."""
        return min(FIRST_CAPACITY, self.max_capacity) if self.prompt.shape[1] < FIRST_CAPACITY else self.max_capacity

    def prefill_arguments(self) -> tuple:
        """Of `prefill`."""
        inputs = (self.source, self.encoder_inputs, self.prompt, self.search_params)
        return (self.model, self.strategy, self.first_capacity, self.params, *inputs)

    def segment_arguments(
        self, carry: Carry, search_params: SearchParams, max_length: int, max_unfinished: int
    ) -> tuple:
        """Of `decode_segment`; `search_params` may have changed since prefill."""
        limits = (np.int32(max_length), np.int32(max_unfinished))
        return (self.model, self.strategy, self.params, carry, search_params, *limits)


def step_function(model: EncoderDecoder, variables: Any, strategy: Strategy) -> decode_loop.Step:
    """The model's decoder as the loop's step."""

    def step(tokens, cache):
        return model.apply(variables, tokens, cache, last=not strategy.lookahead, method="decode_tokens")

    return step


def encode_source(model: EncoderDecoder, variables: Any, source: Source, encoder_inputs: Mapping[str, Any]) -> tuple:
    """The model's `source_keys_values` of the source."""

    def encode(part):
        ids, mask, more = part
        states = model.apply(variables, ids, mask, **more, method="encode")
        return model.apply(variables, states, method="source_keys_values")

    return cpu.map_rows(encode, (source.ids, source.mask, dict(encoder_inputs)), *source.mask.shape)


@functools.partial(cpu.jit_large_products, static_argnames=("model", "strategy", "capacity"))
def prefill(model, strategy, capacity, params, source, encoder_inputs, prompt, search_params) -> Carry:
    """Encodes the source, projects its keys and values once, reads the prompt and chooses the first token."""
    variables = {"params": params}
    cross = encode_source(model, variables, source, encoder_inputs)
    cache = model.apply(variables, cross, source.mask, strategy.slots, capacity, method="empty_cache")
    cache = cache.replace(begins=None if source.prompt_starts is None else source.prompt_starts[:, None])
    step = step_function(model, variables, strategy)
    return decode_loop.prefill(strategy, step, cache, source, prompt, capacity, search_params)


@functools.partial(jax.jit, static_argnames=("model", "strategy"), donate_argnames=("carry",))
def decode_segment(model, strategy, params, carry, search_params, max_length, max_unfinished):
    """Runs the loop; returns the carry, and its length, unfinished rows [batch] and whether the search continues."""
    step = step_function(model, {"params": params}, strategy)
    carry = decode_loop.decode_until(strategy, step, carry, search_params, max_length, max_unfinished)
    state = carry.state
    continues = strategy.should_continue(state, search_params)
    return carry, (state.length, strategy.unfinished_rows(state), continues)


@functools.partial(jax.jit, static_argnames=("capacity",))
def resize(carry: Carry, capacity: int, pad_id: jax.Array, rows: jax.Array | None) -> Carry:
    """The carry with room for `capacity` tokens, of the rows [n] (None: all)."""
    if rows is not None:
        carry = jax.tree.map(lambda a: a[rows] if a.ndim else a, carry)  # [batch, ...] -> [n, ...]
    if capacity > carry.cache.length:
        carry = carry.replace(state=carry.state.grown(capacity, pad_id), cache=carry.cache.grown(capacity))
    return carry


def cache_capacity(strategy: Strategy, max_length: int) -> int:
    """The capacity of a cache for sequences of `max_length` tokens."""
    return -(-(max_length + strategy.lookahead) // BUCKET) * BUCKET


def compile_programs(job: DecodingJob) -> None:
    """Compiles what `decode` runs first; `decode` then finds the programs in jax's own cache."""
    lowered = prefill.lower(*job.prefill_arguments())
    compiled = lowered.compile()
    if jax.sharding.get_abstract_mesh().empty:
        carry = lowered.out_info
    else:
        described = lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding)
        carry = jax.tree.map(described, lowered.out_info, compiled.output_shardings)
    decode_segment.lower(*job.segment_arguments(carry, job.search_params, 0, 0)).compile()


def decode(
    job: DecodingJob,
    *,
    compact: bool = False,
    max_time: float | None = None,
    callback: Callable[[np.ndarray, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The strategy's results of every row, [batch, n, ...], on the host.

    Args:
      compact: finished rows leave. Worth it where many batches of a shape are decoded: more shapes are compiled.
      max_time: seconds; then every row ends with the next token.
      callback: is given the sequences [batch, n, capacity] so far and how many of their tokens count.
    """
    start, (batch, prompt_length) = time.monotonic(), job.prompt.shape
    strategy, search_params, capacity = job.strategy, job.search_params, job.first_capacity
    carry = prefill(*job.prefill_arguments())
    rows, results = np.arange(batch), ResultCollector(batch)
    in_ticks, length = max_time is not None or callback is not None, prompt_length + 1
    while True:
        if callback is not None:
            callback(to_host(carry.state.sequences), length)
        if max_time is not None and time.monotonic() - start > max_time:
            search_params = search_params.replace(max_length=np.int32(min(length + 1, search_params.max_length)))
        room = capacity - strategy.lookahead
        max_unfinished = len(rows) // SHRINK if compact else 0
        carry, status = decode_segment(
            *job.segment_arguments(carry, search_params, min(room, length + TICK) if in_ticks else room, max_unfinished)
        )
        length, unfinished, continues = int(status[0]), to_host(status[1]), bool(status[2])
        if not continues:
            break
        staying = None
        if compact and unfinished.sum() <= max_unfinished:
            results.add(strategy.results(carry.state), rows, ~unfinished)
            # The smaller batch is filled up with copies of its first rows, whose number is -1.
            staying = np.resize(np.flatnonzero(unfinished), max_unfinished).astype(np.int32)
            rows = np.where(np.arange(max_unfinished) < unfinished.sum(), rows[staying], -1)
        if length >= room:
            capacity = min(2 * capacity, job.max_capacity)
        if staying is not None or capacity > carry.cache.length:
            carry = resize(carry, capacity, search_params.pad_id, staying)
    results.add(strategy.results(carry.state), rows, rows >= 0)
    if callback is not None:
        callback(to_host(carry.state.sequences), length)
    return results.stacked(int(search_params.pad_id))


class ResultCollector:
    """Collects the results of rows that end at different times."""

    def __init__(self, batch: int):
        self._rows: list[Mapping[str, np.ndarray] | None] = [None] * batch

    def add(self, results: Mapping[str, jax.Array], rows: np.ndarray, which: np.ndarray) -> None:
        """Adds those `which` [n] of results [n, ...]; `rows` [n] are their numbers in the call, -1 for none."""
        host = {name: to_host(array) for name, array in results.items()}
        for i in np.flatnonzero(which & (rows >= 0)):
            self._rows[rows[i]] = {name: array[i] for name, array in host.items()}

    def stacked(self, pad_id: int) -> dict[str, np.ndarray]:
        """The results of all rows [batch, n, ...], padded to the longest capacity."""
        fills = {"sequences": pad_id, "beam_indices": -1}
        out = {}
        for name in self._rows[0]:
            parts = [row[name] for row in self._rows]  # [n, capacity, ...] or [n]
            if parts[0].ndim > 1:
                longest = max(part.shape[1] for part in parts)
                widths = [((0, 0), (0, longest - part.shape[1]), *((0, 0),) * (part.ndim - 2)) for part in parts]
                parts = [np.pad(p, w, constant_values=fills.get(name, 0)) for p, w in zip(parts, widths)]
            out[name] = np.stack(parts)
        return out
