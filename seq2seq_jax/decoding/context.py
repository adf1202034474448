"""What stands between the logits and the choice of a token: the types of processors, criteria and automata.

Each is a pytree that can be called. Its leaves are traced, so another number compiles nothing; its structure is static,
so a setting that is off costs nothing. A plain Python function of the user's is wrapped as `StaticFunction`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class DecodingContext:
    """What processors and criteria see beside the scores.

    Attributes:
      sequences: int32 [batch, n, capacity], of which the first `length` tokens count, start token and prompt included.
      length: int32 scalar. prompt_length: int32 scalar, how many of these tokens were given.
      source: int32 [batch, source]; None where input_ids were not given. source_mask: bool [batch, source], True on
        tokens.
      automaton_states: by name, the state of each automaton for each sequence, [batch, n, ...].
      row: int32 [batch], each row's number in the call.
      prompt_starts: int32 [batch], the position of each prompt's first token behind pads; None: 0. `length` and
        `prompt_length` count the pads.
    """

    sequences: jax.Array
    length: jax.Array
    prompt_length: jax.Array
    source: jax.Array | None
    source_mask: jax.Array
    automaton_states: Mapping[str, Any] = struct.field(default_factory=dict)
    row: jax.Array | None = None
    prompt_starts: jax.Array | None = None

    @property
    def unpadded_length(self) -> jax.Array:
        """`length` without the pads before the prompt: a scalar, or [batch, 1, 1]."""
        return self.length if self.prompt_starts is None else self.length - self.prompt_starts[:, None, None]

    @property
    def token_mask(self) -> jax.Array:
        """bool [capacity] or [batch, 1, capacity]: True where the sequences have tokens."""
        positions = jnp.arange(self.sequences.shape[-1])
        before_end = positions < self.length
        return (
            before_end if self.prompt_starts is None else before_end & (positions >= self.prompt_starts[:, None, None])
        )


# (scores float32 [batch, n, vocab], context) -> scores of the same shape. Beam search gives log-probabilities, greedy
# search and sampling give raw logits, as torch does. The vocabulary may be padded: the scores of the padding are -inf.
Processor = Callable[[jax.Array, DecodingContext], jax.Array]
# context -> bool [batch, n], or what broadcasts to it: the sequences that end with their last token.
Criterion = Callable[[DecodingContext], jax.Array]


class Automaton(Protocol):
    """Reads sequences token by token; its states follow the hypotheses when beams are reordered."""

    def initial_states(self, prompt: jax.Array, prompt_starts: jax.Array | None = None) -> Any:
        """States [batch, ...] after the prompt, int32 [batch, p], whose tokens begin at `prompt_starts` [batch] (None:
        at 0)."""

    def next_states(self, states: Any, tokens: jax.Array) -> Any:
        """States [batch, n, ...] after one more token of each sequence, int32 [batch, n]."""


@struct.dataclass
class StaticFunction:
    """A Python function as a pytree without leaves: jax.jit compiles once for each function, told apart by identity.

    Attributes:
      function: hashable; what it closes over is constant in the compiled search.
    """

    function: Callable = struct.field(pytree_node=False)

    def __call__(self, *arguments: Any) -> jax.Array:
        return self.function(*arguments)


def as_pytrees(functions: Iterable[Callable], name: str) -> tuple[Callable, ...]:
    """The user's processors or criteria, plain functions wrapped as `StaticFunction`.

    Raises:
      ValueError: for what cannot be called; `name` is the argument that it was given as.
    """
    if callable(functions):
        raise ValueError(f"{name} is one function; give a list of functions, {name}=[...]")
    functions = tuple(functions)
    for function in functions:
        if not callable(function) or not isinstance(function, Hashable):
            raise ValueError(f"{name} has {function!r}; give hashable functions, as decoding/context.py describes them")
    # A pytree is no leaf of itself.
    return tuple(StaticFunction(f) if jax.tree.structure(f) == jax.tree.structure(0) else f for f in functions)


def apply_processors(scores: jax.Array, context: DecodingContext, processors: Sequence[Processor]) -> jax.Array:
    """Scores [batch, n, vocab] after all `processors`, in order."""
    for processor in processors:
        shape, scores = scores.shape, processor(scores, context)
        if jnp.shape(scores) != shape:
            name = getattr(processor, "function", type(processor)).__name__
            raise ValueError(f"processor {name} returned scores of shape {list(jnp.shape(scores))}; give {list(shape)}")
    return scores


def set_scores(scores: jax.Array, ids: jax.Array, values: jax.Array | float) -> jax.Array:
    """scores [batch, n, vocab] with scores[b, j, ids[b, j, i]] = values[b, j, i]; ids beyond the vocabulary drop."""
    b, j = jnp.ogrid[: scores.shape[0], : scores.shape[1]]  # [batch, 1], [1, n]
    return scores.at[b[..., None], j[..., None], ids].set(values, mode="drop")
