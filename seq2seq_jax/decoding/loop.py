"""The decode loop: what every way of searching shares.

A strategy is a frozen dataclass of pure functions (`Strategy`); `search` drives one over a step function in a single
`lax.while_loop`. It knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.logits import Automaton, Criterion, Processor, View
from seq2seq_jax.models import cpu

# What torch adds to the score of a hypothesis that must not be chosen.
NEVER = -1.0e9
PAD = None
# tokens [batch, slots, count], cache -> a models.encoder_decoder.DecodeStep, the longer cache.
Step = Callable[[jax.Array, Any], tuple[Any, Any]]


@struct.dataclass
class Rules:
    """What a search goes by, beside its strategy. Numbers are traced; None and the kinds of processors are static.

    Attributes:
      max_length, prompt_length, pad_id: int32 scalars; lengths count the start token and the prompt.
      eos_ids: int32 [n_eos].
      processors, warpers: on the scores; warpers where there is sampling. criteria: ends beside eos_ids and max_length.
      automata: what processors and criteria remember of each hypothesis.
      own_length: int32 scalar, the greatest length of a row without the pads before its prompt; None: max_length, which
        counts them, is all.
      rng: a key, where there is sampling.
      numbers: of the strategy, by name (float32 or int32 scalars).
      kinds: stands for the classes of the functions above. jax holds the structures of dataclasses of different
        classes for equal if they have as many fields (their hashes differ), and so took, once in some fifty pairs, the
        compiled search with one processor for that with another.
    """

    max_length: jax.Array
    prompt_length: jax.Array
    pad_id: jax.Array
    eos_ids: jax.Array
    processors: tuple[Processor, ...] = ()
    warpers: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    automata: Mapping[str, Automaton] = struct.field(default_factory=dict)
    own_length: jax.Array | None = None
    rng: jax.Array | None = None
    numbers: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    kinds: int | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self):
        functions = self.processors, self.warpers, self.criteria, self.automata
        object.__setattr__(self, "kinds", hash(jax.tree.structure(functions)))


@struct.dataclass
class Source:
    """What the rows decode: ids int32 [batch, source] or None (embeddings or states were given in their place), mask
    bool [batch, source], each row's number in the call, and where its prompt begins, behind pads: int32 [batch], or
    None if all begin at 0."""

    ids: jax.Array | None
    mask: jax.Array
    row: jax.Array
    begins: jax.Array | None = None


@struct.dataclass
class Carry:
    """What the loop carries; the first axis of every array with axes is the batch."""

    state: Any
    cache: Any
    source: Source


class Growing:
    """Of states with arrays [batch, n, capacity, ...]; `positions` names each with what fills new places, or PAD."""

    positions: ClassVar[Mapping[str, Any]]

    def grown(self, capacity: int, pad_id: jax.Array):
        """The state with room for `capacity` tokens."""

        def longer(name, fill):
            fill = pad_id if fill is PAD else fill
            return jax.tree.map(lambda array: lengthened(array, capacity, fill, axis=2), getattr(self, name))

        return self.replace(**{name: longer(name, fill) for name, fill in self.positions.items()})


class Strategy(Protocol):
    """A way to search. All methods are pure; a state is a pytree with `length`, tokens so far, and `grown`."""

    slots: int  # hypotheses that the cache holds for each row
    ahead: int  # tokens that a step reads beyond the next one; where there are any, the logits of all are wanted
    kept: tuple[str, ...]  # of "logits" and "scores", what is recorded

    def first(self, prompt: jax.Array, capacity: int, step: Any, cache: Any, source: Source, rules: Rules):
        """The state and cache after prompt [batch, p] was read, by slot 0, and the first choice was made."""

    def tokens(self, state: Any, source: Source) -> jax.Array:
        """What to read next, int32 [batch, slots, 1 + ahead]."""

    def advance(self, state: Any, step: Any, cache: Any, source: Source, rules: Rules) -> tuple[Any, Any]:
        """The state and cache after `tokens` were read and the next were chosen."""

    def open_rows(self, state: Any) -> jax.Array:
        """bool [batch]: the rows whose result may still change."""

    def running(self, state: Any, rules: Rules) -> jax.Array:
        """bool: whether to go on."""

    def results(self, state: Any) -> dict[str, jax.Array]:
        """By name, arrays [batch, n, ...], best first; at least `sequences` int32 [batch, n, capacity]."""


def search(
    strategy: Strategy, step: Step, cache: Any, source: Source, prompt: jax.Array, capacity: int, rules: Rules
) -> dict[str, jax.Array]:
    """A whole search: results of `strategy` on prompt [batch, p], of up to `capacity` tokens."""
    carry = start(strategy, step, cache, source, prompt, capacity, rules)
    carry = run(strategy, step, carry, rules, jnp.int32(capacity), jnp.int32(0))
    return strategy.results(carry.state)


def start(
    strategy: Strategy, step: Step, cache: Any, source: Source, prompt: jax.Array, capacity: int, rules: Rules
) -> Carry:
    """The prompt is read once, by one slot, from which all others descend."""
    out, cache = step(prompt[:, None, :], cache)
    state, cache = strategy.first(prompt, capacity, out, cache.after_prompt(), source, rules)
    return Carry(state, cache, source)


def run(strategy: Strategy, step: Step, carry: Carry, rules: Rules, until: jax.Array, leave: jax.Array) -> Carry:
    """Goes on while the search runs, the sequences are shorter than `until`, and more than `leave` rows are open."""
    batch = carry.source.mask.shape[0]

    def body(carry: Carry) -> Carry:
        out, cache = step(strategy.tokens(carry.state, carry.source), cpu.with_one_row(carry.cache, batch))
        state, cache = strategy.advance(carry.state, out, cache, carry.source, rules)
        return Carry(state, cpu.without_one_row(cache, batch), carry.source)

    def go_on(carry: Carry) -> jax.Array:
        more = strategy.running(carry.state, rules) & (carry.state.length < until)
        return more & (jnp.sum(strategy.open_rows(carry.state)) > leave)

    carry = jax.lax.while_loop(go_on, body, carry.replace(cache=cpu.without_one_row(carry.cache, batch)))
    return carry.replace(cache=cpu.with_one_row(carry.cache, batch))


def take(array: jax.Array, slots: jax.Array) -> jax.Array:
    """array [batch, n, ...] at slots [batch, m]: [batch, m, ...]."""
    return jnp.take_along_axis(array, slots.reshape(*slots.shape, *(1,) * (array.ndim - 2)), axis=1)


def put(sequences: jax.Array, tokens: jax.Array, position: jax.Array) -> jax.Array:
    """sequences [batch, n, capacity] with tokens [batch, n] at a position."""
    return jax.lax.dynamic_update_index_in_dim(sequences, tokens[:, :, None].astype(sequences.dtype), position, axis=2)


def lengthened(array: jax.Array, size: int, fill: Any, *, axis: int) -> jax.Array:
    """`array` with `axis` of `size`, new places filled."""
    shape = list(array.shape)
    shape[axis] = size - shape[axis]
    return jnp.concatenate([array, jnp.full(shape, fill, array.dtype)], axis=axis)


def view_of(sequences: jax.Array, length: jax.Array, memory: Mapping, source: Source, rules: Rules) -> View:
    """What processors and criteria see."""
    return View(sequences, length, rules.prompt_length, source.ids, source.mask, memory, source.row, source.begins)


def begin_memory(prompt: jax.Array, n: int, source: Source, rules: Rules) -> dict[str, Any]:
    """The automata's states [batch, n, ...] after the prompt."""

    def spread(states):
        return jax.tree.map(lambda a: jnp.broadcast_to(a[:, None], (a.shape[0], n, *a.shape[1:])), states)

    return {name: spread(automaton.begin(prompt, source.begins)) for name, automaton in rules.automata.items()}


def next_memory(memory: Mapping, parents: jax.Array | None, tokens: jax.Array, rules: Rules) -> dict[str, Any]:
    """The states after tokens [batch, m] of the continued hypotheses `parents` [batch, m] (None: each its own)."""
    if parents is not None:
        memory = jax.tree.map(lambda a: take(a, parents), memory)
    return {name: automaton.next(memory[name], tokens) for name, automaton in rules.automata.items()}


def ends(view: View, tokens: jax.Array, rules: Rules) -> jax.Array:
    """bool [batch, n]: sequences of `view` that end with their last tokens [batch, n]; rules.max_length aside."""
    over = jnp.any(tokens[:, :, None] == rules.eos_ids, axis=-1)
    if rules.own_length is not None:
        over |= view.own_length[:, :, 0] >= rules.own_length
    for criterion in rules.criteria:
        over |= criterion(view)
    return over


def greatest_length(source: Source, rules: Rules) -> jax.Array:
    """int32, a scalar or [batch, 1]: of sequences, pads before the prompt included."""
    if rules.own_length is None:
        return rules.max_length
    return jnp.minimum(rules.max_length, source.begins[:, None] + rules.own_length)


def length_penalty(generated: jax.Array, rules: Rules) -> jax.Array:
    """By what the summed log-probabilities of `generated` tokens are divided."""
    generated = generated.astype(jnp.float32)
    if "gnmt_length_penalty" in rules.numbers:
        return ((5.0 + generated) / 6.0) ** rules.numbers["gnmt_length_penalty"]
    return generated ** rules.numbers["length_penalty"]


def row_keys(rules: Rules, source: Source, length: jax.Array) -> jax.Array:
    """A key for each row [batch], which follows from the row's number and its length, not from the other rows."""
    lengths = jnp.broadcast_to(length if source.begins is None else length - source.begins, source.row.shape)
    fold = jax.random.fold_in
    return jax.vmap(lambda row, length: fold(fold(rules.rng, row), length))(source.row, lengths)


def row_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gumbel noise [batch, n, rows] from keys [batch]. Each row's draws begin anew, so that those of a vocabulary do
    not depend on how far it is padded."""
    draw = lambda key, i: jax.random.gumbel(jax.random.fold_in(key, i), shape[2:])
    return jax.vmap(jax.vmap(draw, in_axes=(None, 0)), in_axes=(0, None))(keys, jnp.arange(shape[1]))


@struct.dataclass
class Record:
    """Scores on request, float32 [batch, n, capacity, rows]: raw logits, and what the choice was made from."""

    logits: jax.Array | None = None
    scores: jax.Array | None = None

    @classmethod
    def begin(cls, kept: tuple[str, ...], batch: int, n: int, capacity: int, rows: int) -> Record:
        return cls(**{name: jnp.zeros((batch, n, capacity, rows), jnp.float32) for name in kept})

    def at(self, position: jax.Array, **values: jax.Array) -> Record:
        """With values [batch, n, rows] of those that are kept."""
        kept = {name: value for name, value in values.items() if getattr(self, name) is not None}
        return self.replace(
            **{
                name: jax.lax.dynamic_update_index_in_dim(getattr(self, name), value[:, :, None], position, axis=2)
                for name, value in kept.items()
            }
        )


def kept_results(record: Record | None) -> dict[str, jax.Array]:
    """What is recorded, as results."""
    kept = {} if record is None else vars(record)
    return {f"kept_{name}": value for name, value in kept.items() if value is not None}
