"""The decode loop, which all strategies share.

A strategy is a frozen dataclass of pure functions (`Strategy`); the loop drives it over a step function in one
`lax.while_loop`. Nothing here depends on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from seq2seq_jax.decoding.context import Automaton, Criterion, DecodingContext, Processor
from seq2seq_jax.models import cpu

# What torch adds to the score of a hypothesis that must not be chosen.
EXCLUDED = -1.0e9
PAD = None
# tokens [batch, slots, count], cache -> a models.encoder_decoder.DecodeStep, the longer cache.
Step = Callable[[jax.Array, Any], tuple[Any, Any]]


@struct.dataclass
class SearchParams:
    """The parameters of a search, beside its strategy. Numbers are traced; None and the types of processors are static.

    Attributes:
      max_length, prompt_length, pad_id: int32 scalars; lengths count the start token and the prompt.
      eos_ids: int32 [n_eos].
      processors, warpers: change the scores; warpers where tokens are sampled.
      criteria: end a sequence, beside eos_ids and max_length.
      automata: by name; processors and criteria read their states.
      max_unpadded_length: int32 scalar, the greatest length of a row without the pads before its prompt; None: only
        max_length, which counts them, ends a row.
      rng: a key, where tokens are sampled.
      penalties: what the strategy reads, by the GenerationConfig's name, float32 scalars.
      structure_hash: stands for the classes of the functions above. jax holds the structures of dataclasses of
        different classes for equal if they have as many fields (their hashes differ), and so took, once in some fifty
        pairs, the compiled search with one processor for that with another.
    """

    max_length: jax.Array
    prompt_length: jax.Array
    pad_id: jax.Array
    eos_ids: jax.Array
    processors: tuple[Processor, ...] = ()
    warpers: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    automata: Mapping[str, Automaton] = struct.field(default_factory=dict)
    max_unpadded_length: jax.Array | None = None
    rng: jax.Array | None = None
    penalties: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    structure_hash: int | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self):
        functions = self.processors, self.warpers, self.criteria, self.automata
        object.__setattr__(self, "structure_hash", hash(jax.tree.structure(functions)))


@struct.dataclass
class Source:
    """The source of each row.

    Attributes:
      ids: int32 [batch, source]; None where embeddings or encoder outputs were given in their place.
      mask: bool [batch, source], True on tokens.
      row: int32 [batch], each row's number in the call.
      prompt_starts: int32 [batch], the position of each prompt's first token behind pads; None: 0.
    """

    ids: jax.Array | None
    mask: jax.Array
    row: jax.Array
    prompt_starts: jax.Array | None = None


@struct.dataclass
class Carry:
    """What the loop carries; the first axis of every array with axes is the batch."""

    state: Any
    cache: Any
    source: Source


class GrowableState:
    """A state whose arrays [batch, n, capacity, ...] can grow; `capacity_fills` gives each one's fill value, or PAD."""

    capacity_fills: ClassVar[Mapping[str, Any]]

    def grown(self, capacity: int, pad_id: jax.Array):
        """The state with room for `capacity` tokens."""

        def grow(name, fill):
            fill = pad_id if fill is PAD else fill
            return jax.tree.map(lambda array: pad_axis(array, capacity, fill, axis=2), getattr(self, name))

        return self.replace(**{name: grow(name, fill) for name, fill in self.capacity_fills.items()})


class Strategy(Protocol):
    """A decoding strategy. All methods are pure; a state is a pytree with `length`, tokens so far, and `grown`."""

    slots: int  # hypotheses of a row in the cache
    lookahead: int  # tokens that a step reads beyond the next one; if there are any, the step gives logits for each
    recorded: tuple[str, ...]  # of "logits" and "scores": what the results hold for every step

    def init(
        self, prompt: jax.Array, capacity: int, step: Any, cache: Any, source: Source, search_params: SearchParams
    ):
        """The state and cache after slot 0 read prompt [batch, p] and the first token was chosen."""

    def decoder_inputs(self, state: Any, source: Source) -> jax.Array:
        """The tokens that the next step reads, int32 [batch, slots, 1 + lookahead]."""

    def update(self, state: Any, step: Any, cache: Any, source: Source, search_params: SearchParams) -> tuple[Any, Any]:
        """The state and cache after a step read `decoder_inputs` and the next tokens were chosen."""

    def unfinished_rows(self, state: Any) -> jax.Array:
        """bool [batch]: the rows whose result may still change."""

    def should_continue(self, state: Any, search_params: SearchParams) -> jax.Array:
        """bool scalar."""

    def results(self, state: Any) -> dict[str, jax.Array]:
        """By name, arrays [batch, n, ...], best first; at least `sequences` int32 [batch, n, capacity]."""


def prefill(
    strategy: Strategy,
    step: Step,
    cache: Any,
    source: Source,
    prompt: jax.Array,
    capacity: int,
    search_params: SearchParams,
) -> Carry:
    """Reads prompt [batch, p] once, in slot 0, whose cache all other slots share, and chooses the first token."""
    out, cache = step(prompt[:, None, :], cache)  # [batch, 1, p]
    state, cache = strategy.init(prompt, capacity, out, cache.after_prompt(), source, search_params)
    return Carry(state, cache, source)


def decode_until(
    strategy: Strategy,
    step: Step,
    carry: Carry,
    search_params: SearchParams,
    max_length: jax.Array,
    max_unfinished: jax.Array,
) -> Carry:
    """Steps while the search continues, sequences are shorter than `max_length` and more than `max_unfinished` rows are
    unfinished."""
    batch = carry.source.mask.shape[0]

    def body(carry: Carry) -> Carry:
        out, cache = step(strategy.decoder_inputs(carry.state, carry.source), cpu.with_one_row(carry.cache, batch))
        state, cache = strategy.update(carry.state, out, cache, carry.source, search_params)
        return Carry(state, cpu.without_one_row(cache, batch), carry.source)

    def condition(carry: Carry) -> jax.Array:
        more = strategy.should_continue(carry.state, search_params) & (carry.state.length < max_length)
        return more & (jnp.sum(strategy.unfinished_rows(carry.state)) > max_unfinished)

    carry = jax.lax.while_loop(condition, body, carry.replace(cache=cpu.without_one_row(carry.cache, batch)))
    return carry.replace(cache=cpu.with_one_row(carry.cache, batch))


def gather_beams(array: jax.Array, indices: jax.Array) -> jax.Array:
    """array [batch, n, ...] at indices [batch, m]: [batch, m, ...]."""
    return jnp.take_along_axis(array, indices.reshape(*indices.shape, *(1,) * (array.ndim - 2)), axis=1)


def set_token(sequences: jax.Array, tokens: jax.Array, position: jax.Array) -> jax.Array:
    """sequences [batch, n, capacity] with tokens [batch, n] at a position."""
    return jax.lax.dynamic_update_index_in_dim(sequences, tokens[:, :, None].astype(sequences.dtype), position, axis=2)


def pad_axis(array: jax.Array, size: int, fill: Any, *, axis: int) -> jax.Array:
    """`array` with `axis` of `size`; new elements are `fill`."""
    shape = list(array.shape)
    shape[axis] = size - shape[axis]
    return jnp.concatenate([array, jnp.full(shape, fill, array.dtype)], axis=axis)


def make_context(
    sequences: jax.Array, length: jax.Array, states: Mapping, source: Source, search_params: SearchParams
) -> DecodingContext:
    """The context of sequences [batch, n, capacity] with automaton states [batch, n, ...]."""
    prompt_length, starts = search_params.prompt_length, source.prompt_starts
    return DecodingContext(sequences, length, prompt_length, source.ids, source.mask, states, source.row, starts)


def initial_automaton_states(prompt: jax.Array, n: int, source: Source, search_params: SearchParams) -> dict[str, Any]:
    """The automata's states [batch, n, ...] after the prompt."""

    def repeat(states):  # [batch, ...] -> [batch, n, ...]
        return jax.tree.map(lambda a: jnp.broadcast_to(a[:, None], (a.shape[0], n, *a.shape[1:])), states)

    return {
        name: repeat(automaton.initial_states(prompt, source.prompt_starts))
        for name, automaton in search_params.automata.items()
    }


def next_automaton_states(
    states: Mapping, parents: jax.Array | None, tokens: jax.Array, search_params: SearchParams
) -> dict[str, Any]:
    """The states after tokens [batch, m], which continue the hypotheses `parents` [batch, m] (None: each its own)."""
    if parents is not None:
        states = jax.tree.map(lambda a: gather_beams(a, parents), states)
    return {name: automaton.next_states(states[name], tokens) for name, automaton in search_params.automata.items()}


def is_finished(context: DecodingContext, tokens: jax.Array, search_params: SearchParams) -> jax.Array:
    """bool [batch, n]: the sequences that end with their last tokens [batch, n]; search_params.max_length aside."""
    finished = jnp.any(tokens[:, :, None] == search_params.eos_ids, axis=-1)  # [batch, n, n_eos] -> [batch, n]
    if search_params.max_unpadded_length is not None:
        finished |= context.unpadded_length[:, :, 0] >= search_params.max_unpadded_length
    for criterion in search_params.criteria:
        ended = jnp.asarray(criterion(context))
        if ended.dtype != bool or ended.ndim not in (0, 2):
            name = getattr(criterion, "function", type(criterion)).__name__
            raise ValueError(
                f"criterion {name} returned {ended.dtype} {list(ended.shape)}; give bool {list(finished.shape)}"
            )
        finished |= ended
    return finished


def max_lengths(source: Source, search_params: SearchParams) -> jax.Array:
    """The greatest length of sequences, pads before the prompt included: int32, a scalar or [batch, 1]."""
    if search_params.max_unpadded_length is None:
        return search_params.max_length
    return jnp.minimum(search_params.max_length, source.prompt_starts[:, None] + search_params.max_unpadded_length)


def length_penalty(generated: jax.Array, search_params: SearchParams) -> jax.Array:
    """The divisor of the summed log-probabilities of `generated` tokens."""
    generated, penalties = generated.astype(jnp.float32), search_params.penalties
    if "gnmt_length_penalty" in penalties:
        return ((5.0 + generated) / 6.0) ** penalties["gnmt_length_penalty"]
    return generated ** penalties["length_penalty"]


def row_keys(search_params: SearchParams, source: Source, length: jax.Array) -> jax.Array:
    """A key for each row [batch], which depends on the row's number and its length only, not on the other rows."""
    lengths = length if source.prompt_starts is None else length - source.prompt_starts
    fold = jax.random.fold_in
    return jax.vmap(lambda row, length: fold(fold(search_params.rng, row), length))(
        source.row, jnp.broadcast_to(lengths, source.row.shape)
    )


def gumbel_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gumbel noise [batch, n, vocab] from keys [batch]. Each of the n has a key of its own, so that the draws of a
    vocabulary do not depend on how far it is padded."""
    draw = lambda key, i: jax.random.gumbel(jax.random.fold_in(key, i), shape[2:])
    return jax.vmap(jax.vmap(draw, in_axes=(None, 0)), in_axes=(0, None))(keys, jnp.arange(shape[1]))


@struct.dataclass
class ScoreHistory:
    """What output_logits and output_scores ask for, float32 [batch, n, capacity, vocab]: raw logits, and the scores
    that the choice was made from; None: not asked for."""

    logits: jax.Array | None = None
    scores: jax.Array | None = None

    @classmethod
    def zeros(cls, recorded: tuple[str, ...], batch: int, n: int, capacity: int, vocab: int) -> ScoreHistory:
        return cls(**{name: jnp.zeros((batch, n, capacity, vocab), jnp.float32) for name in recorded})

    def write(self, position: jax.Array, **values: jax.Array) -> ScoreHistory:
        """With values [batch, n, vocab] at a position, of those that are recorded."""
        update = jax.lax.dynamic_update_index_in_dim
        return self.replace(
            **{
                name: update(getattr(self, name), value[:, :, None], position, axis=2)
                for name, value in values.items()
                if getattr(self, name) is not None
            }
        )


def recorded_results(history: ScoreHistory | None) -> dict[str, jax.Array]:
    """What is recorded, as results."""
    arrays = {} if history is None else vars(history)
    return {f"recorded_{name}": array for name, array in arrays.items() if array is not None}
