"""Processors of next-token scores, in the order in which transformers' generate applies them.

Each is a pytree of numbers; `decoding/settings.py` makes them from a GenerationConfig. All take scores float32
[batch, n, rows] and a View, and work in memory of [batch, n, rows] or [batch, n, capacity].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.logits import View, set_rows
from seq2seq_jax.decoding.vocabulary import letters, once, word_pieces

# Far below all sums of log-probabilities, and above what the searches give to places that no hypothesis fills.
_BLOCKED = -1.0e6


@struct.dataclass
class PaddedRows:
    """Rows beyond the vocabulary are never chosen.

    Attributes:
      vocab_size: rows that are true.
    """

    vocab_size: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        rows = scores.shape[-1]
        return scores if rows <= self.vocab_size else jnp.where(jnp.arange(rows) < self.vocab_size, scores, -jnp.inf)


@struct.dataclass
class SequenceBias:
    """Biases of single tokens, and of tokens that complete a sequence (torch's SequenceBiasLogitsProcessor; with biases
    of -inf, NoBadWordsLogitsProcessor).

    Attributes:
      singles: int32 [k], their biases: float32 [k].
      prefixes: int32 [m, longest], what must come before, aligned right, lengths: int32 [m].
      lasts: int32 [m], the tokens that complete them, biases: float32 [m].
    """

    singles: jax.Array
    single_biases: jax.Array
    prefixes: jax.Array
    lengths: jax.Array
    lasts: jax.Array
    biases: jax.Array

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[Sequence[int], float]]) -> SequenceBias:
        """From (ids, bias) pairs; of equal ids the last counts."""
        pairs = list({tuple(ids): bias for ids, bias in pairs}.items())
        short = [(ids[0], bias) for ids, bias in pairs if len(ids) == 1]
        long = [(ids, bias) for ids, bias in pairs if len(ids) > 1]
        prefixes = np.zeros((len(long), max((len(ids) - 1 for ids, _ in long), default=0)), np.int32)
        for row, (ids, _) in zip(prefixes, long):
            row[len(row) - len(ids) + 1 :] = ids[:-1]
        return cls(
            np.array([token for token, _ in short], np.int32),
            np.array([bias for _, bias in short], np.float32),
            prefixes,
            np.array([len(ids) - 1 for ids, _ in long], np.int32),
            np.array([ids[-1] for ids, _ in long], np.int32),
            np.array([bias for _, bias in long], np.float32),
        )

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        if self.singles.shape[0]:
            scores += jnp.zeros(scores.shape[-1]).at[self.singles].add(self.single_biases, mode="drop")
        m, longest = self.prefixes.shape
        if not m:
            return scores
        match = jnp.broadcast_to(self.lengths <= view.own_length, (*scores.shape[:2], m))
        for back in range(1, longest + 1):
            token = jnp.take(view.sequences, jnp.maximum(view.length - back, 0), axis=-1)
            match &= (token[..., None] == self.prefixes[:, longest - back]) | (back > self.lengths)
        b, j = jnp.ogrid[: scores.shape[0], : scores.shape[1]]
        added = jnp.where(match, self.biases, 0.0)
        return scores.at[b[..., None], j[..., None], self.lasts].add(added, mode="drop")


@struct.dataclass
class EncoderRepetitionPenalty:
    """Favours tokens of the source: their scores divided by the penalty if negative, else times it (torch's
    EncoderRepetitionPenaltyLogitsProcessor). Padding of the source counts as absent.

    Attributes:
      penalty: float32 scalar.
    """

    penalty: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        shape = (*scores.shape[:2], view.source.shape[-1])
        source, mask = (jnp.broadcast_to(a[:, None], shape) for a in (view.source, view.source_mask))
        return _penalised(scores, source, mask, 1 / self.penalty)


@struct.dataclass
class RepetitionPenalty:
    """Scores of tokens already in the sequence, times the penalty if negative, else divided by it (Keskar et al. 2019;
    torch's RepetitionPenaltyLogitsProcessor).

    Attributes:
      penalty: float32 scalar.
    """

    penalty: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return _penalised(scores, view.sequences, view.inside, self.penalty)


@struct.dataclass
class NoRepeatNGram:
    """Bans tokens that would complete an n-gram of the sequence (torch's NoRepeatNGramLogitsProcessor).

    Attributes:
      n: the size.
    """

    n: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return _without_ngrams(scores, view, view.sequences, view.inside, self.n)


@struct.dataclass
class EncoderNoRepeatNGram:
    """Bans tokens that would complete an n-gram of the source (torch's EncoderNoRepeatNGramLogitsProcessor). Padding of
    the source counts as absent.

    Attributes:
      n: the size.
    """

    n: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return _without_ngrams(scores, view, view.source[:, None], view.source_mask[:, None], self.n)


@struct.dataclass
class MinLength:
    """Bans ends while the sequence is shorter than `length` (torch's MinLengthLogitsProcessor; with the prompt's length
    added, MinNewTokensLengthLogitsProcessor).

    Attributes:
      length: int32 scalar, prompt included. eos: int32 [n_eos].
      own: whether pads before the prompt do not count.
    """

    length: jax.Array
    eos: jax.Array
    own: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        banned = _among(scores.shape[-1], self.eos) & ((view.own_length if self.own else view.length) < self.length)
        return jnp.where(banned, -jnp.inf, scores)


@struct.dataclass
class AllowedTokens:
    """Only what a trie allows next (torch's PrefixConstrainedLogitsProcessor). Reads view.memory["allowed"]. Where the
    scores of all of that are -inf, for each sequence of a row, they become 0.

    Attributes:
      trie: the automaton whose states they are.
    """

    trie: TokenTrie

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        banned = jnp.full(scores.shape, -jnp.inf, scores.dtype)
        return constrained(scores, set_rows(banned, self.trie.allowed(view.memory["allowed"]), 0.0))


@struct.dataclass
class ForcedBos:
    """The first token (torch's ForcedBOSTokenLogitsProcessor).

    Attributes:
      token: int32 scalar.
    """

    token: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return _only(scores, self.token[None], view.own_length == 1)


@struct.dataclass
class ForcedEos:
    """The token at the greatest length (torch's ForcedEOSTokenLogitsProcessor).

    Attributes:
      tokens: int32 [n]. max_length: int32 scalar. own: whether pads before the prompt do not count.
    """

    tokens: jax.Array
    max_length: jax.Array
    own: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return _only(scores, self.tokens, (view.own_length if self.own else view.length) == self.max_length - 1)


@struct.dataclass
class RemoveInvalid:
    """NaN becomes 0, infinities the greatest and least numbers (torch's InfNanRemoveLogitsProcessor).

    Attributes:
      vocab_size: rows that are true; the others stay banned.
    """

    vocab_size: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return PaddedRows(self.vocab_size)(jnp.nan_to_num(scores), view)


@struct.dataclass
class ExponentialDecayLengthPenalty:
    """Ends gain weight with each token beyond a length: |score| * (factor ** tokens - 1) (torch's class of this name).

    Attributes:
      start: int32 scalar, prompt included. log_factor: float32 scalar. eos: int32 [n_eos].
    """

    start: jax.Array
    log_factor: jax.Array
    eos: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        beyond = jnp.maximum(view.length - self.start, 0)
        gained = jnp.abs(scores) * jnp.expm1(beyond * self.log_factor)
        counts = _among(scores.shape[-1], self.eos) & jnp.isfinite(scores)
        return jnp.where(counts, scores + gained, scores)


@struct.dataclass
class SuppressTokens:
    """Bans tokens (torch's SuppressTokensLogitsProcessor).

    Attributes:
      tokens: int32 [m].
    """

    tokens: jax.Array

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        return jnp.where(_among(scores.shape[-1], self.tokens), -jnp.inf, scores)


@struct.dataclass
class BeginSuppressTokens:
    """Bans tokens at the beginning (torch's SuppressTokensAtBeginLogitsProcessor).

    Attributes:
      tokens: int32 [m]. begin: int32 scalar, the length at which they are banned.
      after_bos: whether it is one more for a row whose prompt, behind pads, is the start token alone.
    """

    tokens: jax.Array
    begin: jax.Array
    after_bos: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        begin = self.begin
        if self.after_bos and view.begins is not None:
            begin = begin + (view.prompt_length - view.begins[:, None, None] == 1)
        banned = _among(scores.shape[-1], self.tokens) & (view.length == begin)
        return jnp.where(banned, -jnp.inf, scores)


@struct.dataclass
class Words:
    """What each token adds to a word, made by `word_table`.

    Attributes:
      starts: bool [tokens]. filled: bool [tokens], whether it has text.
      hashes, powers: uint32 [tokens, 2]: the hash of a text is that of what is before times the power, plus its own.
    """

    starts: jax.Array
    filled: jax.Array
    hashes: jax.Array
    powers: jax.Array


@struct.dataclass
class BlockRepeatedWords:
    """Drops hypotheses whose last n words, the last one perhaps a part of one, stand in them before (Liu & Lapata 2019;
    PreSumm's block_trigram). For beam search.

    All their continuations lose 1e6; where each beam of a row is such, the best goes on (PreSumm's, by -1e21 on
    everything, then writes by chance). After normalisation, which would undo it.

    Attributes:
      n: how many words. words: the vocabulary's.
    """

    words: Words
    n: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, view: View) -> jax.Array:
        hashes, count = self._hashes(view)
        windows = hashes.shape[-2] - self.n
        if windows <= 0:
            return scores
        places = jnp.arange(windows)
        match = places < count - self.n
        for k in range(self.n):
            last = jnp.take_along_axis(hashes, jnp.maximum(count - self.n + k, 0)[..., None], axis=-2)
            match &= jnp.all(hashes[..., k : k + windows, :] == last, axis=-1)
        return scores + jnp.where(jnp.any(match, axis=-1, keepdims=True), _BLOCKED, 0.0)

    def _hashes(self, view: View) -> tuple[jax.Array, jax.Array]:
        """Hashes uint32 [batch, n, capacity, 2] of the words of each sequence, and how many they are [batch, n, 1]."""

        def joined(a, b):
            (starts_a, filled_a, hash_a, power_a), (starts_b, filled_b, hash_b, power_b) = a, b
            fresh = starts_b[..., None]
            both = jnp.where(fresh, hash_b, hash_a * power_b + hash_b), jnp.where(fresh, power_b, power_a * power_b)
            return starts_a | starts_b, filled_b | (filled_a & ~starts_b), *both

        tables = (self.words.starts, self.words.filled, self.words.hashes, self.words.powers)
        parts = tuple(jnp.asarray(table)[view.sequences] for table in tables)
        place = jnp.arange(view.sequences.shape[-1])
        if view.begins is not None:
            parts = (parts[0] | (place == view.begins[:, None, None]), *parts[1:])
        _, filled, hashes, _ = jax.lax.associative_scan(joined, parts, axis=2)
        ahead = jnp.concatenate([parts[0][..., 1:], jnp.ones_like(parts[0][..., :1])], axis=-1)
        whole = filled & view.inside & (ahead | (place == view.length - 1))
        slots = jnp.where(whole, jnp.cumsum(whole, axis=-1) - 1, len(place))
        b, j = jnp.ogrid[: slots.shape[0], : slots.shape[1]]
        packed = jnp.zeros_like(hashes).at[b[..., None], j[..., None], slots].set(hashes, mode="drop")
        return packed, jnp.sum(whole, axis=-1, keepdims=True)


def word_table(tokenizer: Any, vocab_size: int = 0) -> Words:
    """How the tokens of a vocabulary make words; made once for a tokenizer.

    Words are what blanks part, and in WordPiece what PreSumm's ' '.join(tokens).replace(' ##', '').split() gives. A
    token with a blank inside counts as one word.

    Args:
      tokenizer: has a `backend`, a tokenizers.Tokenizer.
      vocab_size: ids that there may be; those that are no tokens are words of their own.
    """
    return once(tokenizer, ("words", vocab_size), lambda: _word_table(tokenizer, vocab_size))


def _word_table(tokenizer: Any, vocab_size: int) -> Words:
    texts, starts = word_pieces(tokenizer)
    others = [b"\0%d" % id for id in range(len(texts), vocab_size)]
    codes, lengths = letters(texts + others)
    random = np.random.default_rng(0)
    of_byte, base = (
        random.integers(2**32, size=(256, 2), dtype=np.uint32),
        random.integers(2**32, size=2, dtype=np.uint32),
    )
    hashes, powers = np.zeros((len(codes), 2), np.uint32), np.ones((len(codes), 2), np.uint32)
    for place in range(codes.shape[1]):
        rows = np.flatnonzero(lengths > place)
        hashes[rows] = hashes[rows] * (base | 1) + of_byte[codes[rows, place]]
        powers[rows] *= base | 1
    starts = np.concatenate([starts, np.ones(len(others), bool)])
    return Words(starts, lengths > 0, hashes, powers)


def constrained(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores plus a mask of 0 and -inf [batch, n, rows]; the mask alone where all sequences of a row are -inf."""
    scores = scores + mask
    none = jnp.all(jnp.max(scores, axis=-1) == -jnp.inf, axis=1)
    return jnp.where(none[:, None, None], mask, scores)


def _among(rows: int, ids: jax.Array) -> jax.Array:
    """bool [rows]: which rows are among ids [m]; ids beyond rows drop."""
    return jnp.zeros(rows, bool).at[ids].set(True, mode="drop")


def _only(scores: jax.Array, ids: jax.Array, when: jax.Array) -> jax.Array:
    """Where `when`, everything but ids [m] is banned and they score 0."""
    return jnp.where(when, jnp.where(_among(scores.shape[-1], ids), 0.0, -jnp.inf), scores)


def _penalised(scores: jax.Array, ids: jax.Array, counts: jax.Array, penalty: jax.Array) -> jax.Array:
    """Scores of ids [batch, n, m] where `counts`, times the penalty if negative, else divided by it."""
    old = jnp.take_along_axis(scores, jnp.minimum(ids, scores.shape[-1] - 1), axis=-1)
    new = jnp.where(old < 0, old * penalty, old / penalty)
    return set_rows(scores, jnp.where(counts, ids, scores.shape[-1]), new)


def _without_ngrams(scores: jax.Array, view: View, text: jax.Array, inside: jax.Array, n: int) -> jax.Array:
    """Bans tokens that would complete an n-gram of text [batch, n or 1, m], where it has tokens `inside`."""
    windows, sequences = text.shape[-1] - n + 1, view.sequences
    if windows <= 0 or sequences.shape[-1] < n - 1:
        return scores
    whole = (view.own_length >= n - 1) & jnp.stack([inside[..., k : k + windows] for k in range(n)]).all(axis=0)
    match = jnp.broadcast_to(whole, (*sequences.shape[:2], windows))
    last = jax.lax.dynamic_slice_in_dim(sequences, view.length - (n - 1), n - 1, axis=-1)
    for k in range(n - 1):
        match &= text[..., k : k + windows] == last[..., k : k + 1]
    return set_rows(scores, jnp.where(match, text[..., n - 1 :], scores.shape[-1]), -jnp.inf)
