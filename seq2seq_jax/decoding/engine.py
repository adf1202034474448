"""The host's side of the decode loop: compiled parts, run in segments.

`start` encodes and reads the prompt, `advance` runs the loop of `decoding/loop.py`, `resized` gives the cache more
room or lets finished rows go. Each is compiled once per shapes and kinds of rules. The cache begins small and doubles,
so that short outputs do not pay for long ones; with `compact`, rows that are done leave for a smaller batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from seq2seq_jax.decoding import loop
from seq2seq_jax.decoding.loop import Carry, Rules, Source, Strategy
from seq2seq_jax.models import cpu
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.parallel.multihost import to_host

# Capacities are multiples of this; the first is FIRST, or what the greatest length needs if that is less.
BUCKET, FIRST = 32, 64
# Rows leave when no more than one in so many is open.
SHRINK = 4
# Between looks at the clock, or calls of a callback, so many tokens.
TICK = 8


@dataclass(frozen=True)
class Search:
    """A search to run: model and parameters in decoding form, what the model's `encode` takes beside ids and mask
    (arrays by name), prompt int32 [batch, p]; see `decoding/loop.py` for the rest.
    """

    model: EncoderDecoder
    strategy: Strategy
    params: Any
    source: Source
    encoder_inputs: Mapping[str, Any]
    prompt: np.ndarray
    rules: Rules

    @property
    def greatest_capacity(self) -> int:
        """The greatest capacity that the cache may need."""
        return room(self.strategy, int(self.rules.max_length))

    @property
    def first_capacity(self) -> int:
        """The capacity that the cache begins with."""
        return min(FIRST, self.greatest_capacity) if self.prompt.shape[1] < FIRST else self.greatest_capacity

    def start_arguments(self) -> tuple:
        """Of `start`."""
        inputs = (self.source, self.encoder_inputs, self.prompt, self.rules)
        return (self.model, self.strategy, self.first_capacity, self.params, *inputs)

    def advance_arguments(self, carry: Carry, rules: Rules, until: int, leave: int) -> tuple:
        """Of `advance`; `rules` may have changed on the way."""
        return (self.model, self.strategy, self.params, carry, rules, np.int32(until), np.int32(leave))


def step_function(model: EncoderDecoder, variables: Any, strategy: Strategy) -> loop.Step:
    """The model's decoder as the loop wants it."""

    def step(tokens, cache):
        return model.apply(variables, tokens, cache, last=not strategy.ahead, method="decode_tokens")

    return step


def encode_source(model: EncoderDecoder, variables: Any, source: Source, encoder_inputs: Mapping[str, Any]) -> tuple:
    """The model's `source_keys_values` of the source."""

    def read(part):
        ids, mask, more = part
        states = model.apply(variables, ids, mask, **more, method="encode")
        return model.apply(variables, states, method="source_keys_values")

    return cpu.map_rows(read, (source.ids, source.mask, dict(encoder_inputs)), *source.mask.shape)


@functools.partial(cpu.jit_large_products, static_argnames=("model", "strategy", "capacity"))
def start(model, strategy, capacity, params, source, encoder_inputs, prompt, rules) -> Carry:
    """Encodes, projects the source once, reads the prompt."""
    variables = {"params": params}
    cross = encode_source(model, variables, source, encoder_inputs)
    cache = model.apply(variables, cross, source.mask, strategy.slots, capacity, method="empty_cache")
    cache = cache.replace(begins=None if source.begins is None else source.begins[:, None])
    return loop.start(strategy, step_function(model, variables, strategy), cache, source, prompt, capacity, rules)


@functools.partial(jax.jit, static_argnames=("model", "strategy"), donate_argnames=("carry",))
def advance(model, strategy, params, carry, rules, until, leave):
    """The loop; also how it stands: its length, which rows are open [batch], whether it goes on."""
    step = step_function(model, {"params": params}, strategy)
    carry = loop.run(strategy, step, carry, rules, until, leave)
    state = carry.state
    return carry, (state.length, strategy.open_rows(state), strategy.running(state, rules))


@functools.partial(jax.jit, static_argnames=("capacity",))
def resized(carry: Carry, capacity: int, pad_id: jax.Array, rows: jax.Array | None) -> Carry:
    """The carry with room for `capacity` tokens, of the rows [n] (None: all)."""
    if rows is not None:
        carry = jax.tree.map(lambda a: a[rows] if a.ndim else a, carry)
    if capacity > carry.cache.length:
        carry = carry.replace(state=carry.state.grown(capacity, pad_id), cache=carry.cache.grown(capacity))
    return carry


def room(strategy: Strategy, needed: int) -> int:
    """The cache's capacity at most, for `needed` tokens."""
    return -(-(needed + strategy.ahead) // BUCKET) * BUCKET


def compile_search(search: Search) -> None:
    """Compiles what `decode` runs first; it finds the programs in jax's own cache then."""
    lowered = start.lower(*search.start_arguments())
    compiled = lowered.compile()
    if jax.sharding.get_abstract_mesh().empty:
        carry = lowered.out_info
    else:
        described = lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding)
        carry = jax.tree.map(described, lowered.out_info, compiled.output_shardings)
    advance.lower(*search.advance_arguments(carry, search.rules, 0, 0)).compile()


def decode(
    search: Search,
    *,
    compact: bool = False,
    max_time: float | None = None,
    callback: Callable[[np.ndarray, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """A whole search; results of every row, [batch, n, ...], on the host.

    Args:
      compact: rows that are done leave. Worth it where many batches of a shape are decoded: more shapes are compiled.
      max_time: seconds; then every row ends with the next token.
      callback: is given the sequences [batch, n, capacity] so far and how many of their tokens count.
    """
    begin, (batch, prompt_length) = time.monotonic(), search.prompt.shape
    strategy, rules, largest, capacity = search.strategy, search.rules, search.greatest_capacity, search.first_capacity
    carry = start(*search.start_arguments())
    rows, results = np.arange(batch), Results(batch)
    ticking, length = max_time is not None or callback is not None, prompt_length + 1
    while True:
        if callback is not None:
            callback(to_host(carry.state.sequences), length)
        if max_time is not None and time.monotonic() - begin > max_time:
            rules = rules.replace(max_length=np.int32(min(length + 1, rules.max_length)))
        until = capacity - strategy.ahead
        until = min(until, length + TICK) if ticking else until
        leave = len(rows) // SHRINK if compact else 0
        carry, status = advance(*search.advance_arguments(carry, rules, until, leave))
        length, opened, running = int(status[0]), to_host(status[1]), bool(status[2])
        if not running:
            break
        kept = None
        if compact and opened.sum() <= leave:
            results.take(strategy.results(carry.state), rows, ~opened)
            kept = np.resize(np.flatnonzero(opened), leave).astype(np.int32)  # filled up with its first rows
            rows = np.where(np.arange(leave) < opened.sum(), rows[kept], -1)
        if length >= capacity - strategy.ahead:
            capacity = min(2 * capacity, largest)
        if kept is not None or capacity > carry.cache.length:
            carry = resized(carry, capacity, rules.pad_id, kept)
    results.take(strategy.results(carry.state), rows, rows >= 0)
    if callback is not None:
        callback(to_host(carry.state.sequences), length)
    return results.whole(int(rules.pad_id))


class Results:
    """Gathers results of rows that end at different times."""

    def __init__(self, batch: int):
        self._rows: list[Mapping[str, np.ndarray] | None] = [None] * batch

    def take(self, results: Mapping[str, jax.Array], rows: np.ndarray, which: np.ndarray) -> None:
        """Keeps those `which` [n] of results [n, ...], of the rows of the call [n]; a row of -1 is none."""
        host = {name: to_host(array) for name, array in results.items()}
        for i in np.flatnonzero(which & (rows >= 0)):
            self._rows[rows[i]] = {name: array[i] for name, array in host.items()}

    def whole(self, pad_id: int) -> dict[str, np.ndarray]:
        """All rows together; the capacity of each array is that of the longest."""
        fills = {"sequences": pad_id, "parents": -1}
        out = {}
        for name in self._rows[0]:
            parts = [row[name] for row in self._rows]
            if parts[0].ndim > 1:
                longest = max(part.shape[1] for part in parts)
                widths = [((0, 0), (0, longest - part.shape[1]), *((0, 0),) * (part.ndim - 2)) for part in parts]
                parts = [np.pad(p, w, constant_values=fills.get(name, 0)) for p, w in zip(parts, widths)]
            out[name] = np.stack(parts)
        return out
