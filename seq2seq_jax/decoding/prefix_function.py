"""Tokens that a Python function allows, called on the host at every step (torch's prefix_allowed_tokens_fn)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.context import DecodingContext
from seq2seq_jax.decoding.processors import mask_scores

# (row of the batch, ids int32 [length] so far, prompt included) -> the ids that may come next.
PrefixFunction = Callable[[int, np.ndarray], Sequence[int]]

# The functions of the running calls by id: the compiled search knows ids only, and serves any function.
_registered: dict[int, _Registered] = {}
_ids = itertools.count()


@struct.dataclass
class AllowedByFunction:
    """Bans all tokens but those that a function allows (torch's PrefixConstrainedLogitsProcessor). Where the scores of
    all of them are -inf, in each sequence of a row, they become 0.

    Attributes:
      function_id: int32 scalar, given by `register`. vocab_size: without padding.
    """

    function_id: jax.Array
    vocab_size: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        def ask(function_id, *arguments):
            return _registered[int(function_id)].allowed(scores.shape, self.vocab_size, *map(np.asarray, arguments))

        starts = jnp.zeros_like(context.row) if context.prompt_starts is None else context.prompt_starts
        arguments = (self.function_id, context.sequences, context.length, context.row, starts)
        allowed = jax.pure_callback(ask, jax.ShapeDtypeStruct(scores.shape, bool), *arguments)
        return mask_scores(scores, jnp.where(allowed, 0.0, -jnp.inf))


@contextlib.contextmanager
def register(function: PrefixFunction | None) -> Iterator[np.int32 | None]:
    """Gives the id by which searches in the context call `function`; None for None.

    Raises:
      Whatever the function raised, and ValueError for what is no list of ids, when the search is over.
    """
    if function is None:
        yield None
        return
    function_id, entry = next(_ids), _Registered(function)
    _registered[function_id] = entry
    try:
        yield np.int32(function_id)
    finally:
        del _registered[function_id]
    if entry.error is not None:
        raise entry.error


class _Registered:
    """A function, and the first error that it raised: XLA would log an error inside a compiled search, not raise it."""

    def __init__(self, function: PrefixFunction):
        self.function = function
        self.error: Exception | None = None

    def allowed(self, shape: tuple[int, ...], vocab_size: int, sequences, length, rows, prompt_starts) -> np.ndarray:
        """bool `shape` [batch, n, vocab]: the tokens that may come next."""
        mask = np.zeros(shape, bool)
        try:
            for b, j in np.ndindex(*shape[:2]):
                if self.error is None:
                    sequence = sequences[b, j, prompt_starts[b] : length]
                    mask[b, j, self._allowed_ids(int(rows[b]), sequence, vocab_size)] = True
        except Exception as error:
            self.error = error
        return mask if self.error is None else np.ones(shape, bool)

    def _allowed_ids(self, row: int, sequence: np.ndarray, vocab_size: int) -> np.ndarray:
        ids: Any = np.asarray(self.function(row, sequence.copy()))
        name = f"prefix_allowed_tokens_fn, asked for row {row} after {sequence.tolist()},"
        if ids.size == 0:
            raise ValueError(f"{name} allows nothing; return at least one id, such as an end token")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{name} returned {ids.tolist()!r}; return a list of ids")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f"{name} returned {ids.max()}; give ids below the vocabulary's size {vocab_size}")
        return ids
