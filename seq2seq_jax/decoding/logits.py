"""What stands between the logits and a choice: processors, warpers and stopping criteria, as pure functions.

Each is a pytree that can be called. Its leaves are traced, so that another number compiles nothing; its structure is
static, so that what is off costs nothing. Functions of the user's own serve as well: a flax `struct.dataclass` with
`__call__`, or a `jax.tree_util.Partial`. A jit of one's own should take them in `loop.Rules`, which says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class View:
    """What processors and criteria see beside the scores.

    Attributes:
      sequences: int32 [batch, n, capacity], of which `length` tokens count, prompt and start token included.
      length: int32 scalar. prompt_length: how many of them were given.
      source: int32 [batch, source]; None where input_ids were not given. source_mask: bool [batch, source], where there
        are tokens.
      memory: by name, the state of each automaton for each sequence, [batch, n, ...].
      row: int32 [batch], each row's number in the call.
      begins: int32 [batch], where the prompts begin, behind pads; None: at 0. Lengths count the pads.
    """

    sequences: jax.Array
    length: jax.Array
    prompt_length: jax.Array
    source: jax.Array | None
    source_mask: jax.Array
    memory: Mapping[str, Any] = struct.field(default_factory=dict)
    row: jax.Array | None = None
    begins: jax.Array | None = None

    @property
    def own_length(self) -> jax.Array:
        """`length` without the pads before the prompt: a scalar, or [batch, 1, 1]."""
        return self.length if self.begins is None else self.length - self.begins[:, None, None]

    @property
    def inside(self) -> jax.Array:
        """bool [capacity] or [batch, 1, capacity]: where the sequences have tokens."""
        places = jnp.arange(self.sequences.shape[-1])
        written = places < self.length
        return written if self.begins is None else written & (places >= self.begins[:, None, None])


# scores float32 [batch, n, rows], view -> scores. Beam search gives log-probabilities, greedy search and sampling raw
# logits, as torch does; rows may be more than the vocabulary, and those beyond are -inf.
Processor = Callable[[jax.Array, View], jax.Array]
# view -> bool [batch, n]: the sequences that end with their last token.
Criterion = Callable[[View], jax.Array]


class Automaton(Protocol):
    """Something that reads a sequence token by token; its states travel with the hypotheses."""

    def begin(self, prompt: jax.Array, begins: jax.Array | None = None) -> Any:
        """States [batch, ...] after the prompt, int32 [batch, p], which begins at `begins` [batch] (None: at 0)."""

    def next(self, states: Any, tokens: jax.Array) -> Any:
        """States [batch, n, ...] after one more token each, int32 [batch, n]."""


def process(scores: jax.Array, view: View, processors: Sequence[Processor]) -> jax.Array:
    """Scores [batch, n, rows] after all `processors`, in order."""
    for processor in processors:
        scores = processor(scores, view)
    return scores


def set_rows(scores: jax.Array, ids: jax.Array, values: jax.Array | float) -> jax.Array:
    """scores [batch, n, rows] with scores[b, j, ids[b, j, i]] = values[b, j, i]; ids beyond rows drop."""
    b, j = jnp.ogrid[: scores.shape[0], : scores.shape[1]]
    return scores.at[b[..., None], j[..., None], ids].set(values, mode="drop")
