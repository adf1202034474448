"""Tokens that a Python function allows, which is asked on the host at every step (torch's prefix_allowed_tokens_fn)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.logits import View
from seq2seq_jax.decoding.processors import constrained

# (row of the batch, ids int32 [length] so far, prompt included) -> the ids that may come next.
AllowedFunction = Callable[[int, np.ndarray], Sequence[int]]

# The functions of the calls that run, by number: the compiled search knows numbers only, and serves another function.
_asked: dict[int, _Asked] = {}
_numbers = itertools.count()


@struct.dataclass
class AllowedByFunction:
    """Only what a function allows next (torch's PrefixConstrainedLogitsProcessor). Where the scores of all of that are
    -inf, for each sequence of a row, they become 0.

    Attributes:
      number: int32 scalar, given by `serving`. vocab_size: rows that are true.
    """

    number: jax.Array
    vocab_size: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        shape = jax.ShapeDtypeStruct(scores.shape, bool)
        begins = jnp.zeros_like(view.row) if view.begins is None else view.begins
        answer = lambda number, *seen: _asked[int(number)].answer(shape.shape, self.vocab_size, *map(np.asarray, seen))
        allowed = jax.pure_callback(answer, shape, self.number, view.sequences, view.length, view.row, begins)
        return constrained(scores, jnp.where(allowed, 0.0, -jnp.inf))


@contextlib.contextmanager
def serving(function: AllowedFunction | None) -> Iterator[np.int32 | None]:
    """Gives the number under which searches inside ask `function`; None for None.

    Raises:
      Whatever the function raised, and ValueError for what is no answer, when the search is over.
    """
    if function is None:
        yield None
        return
    number, asked = next(_numbers), _Asked(function)
    _asked[number] = asked
    try:
        yield np.int32(number)
    finally:
        del _asked[number]
    if asked.error is not None:
        raise asked.error


class _Asked:
    """A function, and the first error that it made: an error inside a compiled search would be logged, not told."""

    def __init__(self, function: AllowedFunction):
        self.function = function
        self.error: Exception | None = None

    def answer(self, shape: tuple[int, ...], vocab_size: int, sequences, length, rows, begins) -> np.ndarray:
        """bool `shape` [batch, n, rows]: what may come next."""
        allowed = np.zeros(shape, bool)
        try:
            for b, j in np.ndindex(*shape[:2]):
                if self.error is None:
                    allowed[b, j, self._ids(int(rows[b]), sequences[b, j, begins[b] : length], vocab_size)] = True
        except Exception as error:
            self.error = error
        return allowed if self.error is None else np.ones(shape, bool)

    def _ids(self, row: int, sequence: np.ndarray, vocab_size: int) -> np.ndarray:
        found: Any = np.asarray(self.function(row, sequence.copy()))
        name = f"prefix_allowed_tokens_fn, asked for row {row} after {sequence.tolist()},"
        if found.size == 0:
            raise ValueError(f"{name} allows nothing; return at least one id, such as an end token")
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"{name} returned {found.tolist()!r}; return a list of ids")
        if found.min() < 0 or found.max() >= vocab_size:
            raise ValueError(f"{name} returned {found.max()}; give ids below the vocabulary's size {vocab_size}")
        return found
