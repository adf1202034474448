"""Processors of next-token scores, in the order in which transformers' generate applies them.

Each is a pytree of numbers; `decoding/build_processors.py` makes them from a GenerationConfig. All take scores float32
[batch, n, vocab] and a DecodingContext, and need memory of that size or of [batch, n, capacity].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.context import DecodingContext, set_scores
from seq2seq_jax.decoding.vocabulary import byte_table, cached_per_tokenizer, word_pieces

# Far below all summed log-probabilities, and above decode_loop.EXCLUDED.
_BLOCKED = -1.0e6


@struct.dataclass
class PaddedVocabulary:
    """Bans the ids that pad the vocabulary.

    Attributes:
      vocab_size: without padding.
    """

    vocab_size: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        vocab = scores.shape[-1]
        return scores if vocab <= self.vocab_size else jnp.where(jnp.arange(vocab) < self.vocab_size, scores, -jnp.inf)


@struct.dataclass
class SequenceBias:
    """Biases of single tokens, and of tokens that complete a sequence (torch's SequenceBiasLogitsProcessor; with biases
    of -inf, NoBadWordsLogitsProcessor).

    Attributes:
      singles: int32 [k], single tokens. single_biases: float32 [k].
      prefixes: int32 [m, longest], the tokens before the last of each sequence, aligned right. lengths: int32 [m].
      lasts: int32 [m], the last tokens. biases: float32 [m].
    """

    singles: jax.Array
    single_biases: jax.Array
    prefixes: jax.Array
    lengths: jax.Array
    lasts: jax.Array
    biases: jax.Array

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[Sequence[int], float]]) -> SequenceBias:
        """From (ids, bias) pairs; of pairs with equal ids the last counts."""
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

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        if self.singles.shape[0]:
            scores += jnp.zeros(scores.shape[-1]).at[self.singles].add(self.single_biases, mode="drop")
        m, longest = self.prefixes.shape
        if not m:
            return scores
        match = jnp.broadcast_to(self.lengths <= context.unpadded_length, (*scores.shape[:2], m))  # [batch, n, m]
        for back in range(1, longest + 1):
            token = jnp.take(context.sequences, jnp.maximum(context.length - back, 0), axis=-1)  # [batch, n]
            match &= (token[..., None] == self.prefixes[:, longest - back]) | (back > self.lengths)
        b, j = jnp.ogrid[: scores.shape[0], : scores.shape[1]]
        added = jnp.where(match, self.biases, 0.0)
        return scores.at[b[..., None], j[..., None], self.lasts].add(added, mode="drop")


@struct.dataclass
class EncoderRepetitionPenalty:
    """Favours tokens of the source: divides their scores by the penalty if negative, else multiplies them (torch's
    EncoderRepetitionPenaltyLogitsProcessor). Pads of the source do not count.

    Attributes:
      penalty: float32 scalar.
    """

    penalty: jax.Array

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        shape = (*scores.shape[:2], context.source.shape[-1])
        source, mask = (jnp.broadcast_to(a[:, None], shape) for a in (context.source, context.source_mask))
        return _penalise_tokens(scores, source, mask, 1 / self.penalty)


@struct.dataclass
class RepetitionPenalty:
    """Multiplies the scores of tokens in the sequence by the penalty if negative, else divides them (Keskar et al.
    2019; torch's RepetitionPenaltyLogitsProcessor).

    Attributes:
      penalty: float32 scalar.
    """

    penalty: jax.Array

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        return _penalise_tokens(scores, context.sequences, context.token_mask, self.penalty)


@struct.dataclass
class NoRepeatNGram:
    """Bans tokens that would complete an n-gram of the sequence (torch's NoRepeatNGramLogitsProcessor).

    Attributes:
      n: the size.
    """

    n: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        return _ban_repeated_ngrams(scores, context, context.sequences, context.token_mask, self.n)


@struct.dataclass
class EncoderNoRepeatNGram:
    """Bans tokens that would complete an n-gram of the source (torch's EncoderNoRepeatNGramLogitsProcessor). Pads of
    the source do not count.

    Attributes:
      n: the size.
    """

    n: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        return _ban_repeated_ngrams(scores, context, context.source[:, None], context.source_mask[:, None], self.n)


@struct.dataclass
class MinLength:
    """Bans end tokens while the sequence is shorter than `length` (torch's MinLengthLogitsProcessor; with the prompt's
    length added, MinNewTokensLengthLogitsProcessor).

    Attributes:
      length: int32 scalar, prompt included. eos: int32 [n_eos].
      skip_pads: whether pads before the prompt do not count.
    """

    length: jax.Array
    eos: jax.Array
    skip_pads: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        length = context.unpadded_length if self.skip_pads else context.length
        banned = _token_mask(scores.shape[-1], self.eos) & (length < self.length)
        return jnp.where(banned, -jnp.inf, scores)


@struct.dataclass
class AllowedTokens:
    """Bans all tokens but those that a trie allows next (torch's PrefixConstrainedLogitsProcessor). Where the scores of
    all of them are -inf, in each sequence of a row, they become 0. Reads context.automaton_states["allowed"].

    Attributes:
      trie: the automaton.
    """

    trie: TokenTrie

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        banned = jnp.full(scores.shape, -jnp.inf, scores.dtype)
        return mask_scores(scores, set_scores(banned, self.trie.allowed(context.automaton_states["allowed"]), 0.0))


@struct.dataclass
class ForcedBos:
    """Forces the first token (torch's ForcedBOSTokenLogitsProcessor).

    Attributes:
      token: int32 scalar.
    """

    token: jax.Array

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        return _force_tokens(scores, self.token[None], context.unpadded_length == 1)


@struct.dataclass
class ForcedEos:
    """Forces the token at the greatest length (torch's ForcedEOSTokenLogitsProcessor).

    Attributes:
      tokens: int32 [n]. max_length: int32 scalar. skip_pads: whether pads before the prompt do not count.
    """

    tokens: jax.Array
    max_length: jax.Array
    skip_pads: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        length = context.unpadded_length if self.skip_pads else context.length
        return _force_tokens(scores, self.tokens, length == self.max_length - 1)


@struct.dataclass
class RemoveInvalid:
    """Replaces NaN by 0 and infinities by the greatest and least numbers (torch's InfNanRemoveLogitsProcessor).

    Attributes:
      vocab_size: without padding, which stays banned.
    """

    vocab_size: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        return PaddedVocabulary(self.vocab_size)(jnp.nan_to_num(scores), context)


@struct.dataclass
class ExponentialDecayLengthPenalty:
    """Adds |score| * (factor ** tokens - 1) to end tokens, where `tokens` counts those beyond a length (torch's class
    of this name).

    Attributes:
      start: int32 scalar, prompt included. log_factor: float32 scalar. eos: int32 [n_eos].
    """

    start: jax.Array
    log_factor: jax.Array
    eos: jax.Array

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        beyond = jnp.maximum(context.length - self.start, 0)
        bonus = jnp.abs(scores) * jnp.expm1(beyond * self.log_factor)
        is_end = _token_mask(scores.shape[-1], self.eos) & jnp.isfinite(scores)
        return jnp.where(is_end, scores + bonus, scores)


@struct.dataclass
class SuppressTokens:
    """Bans tokens (torch's SuppressTokensLogitsProcessor).

    Attributes:
      tokens: int32 [m].
    """

    tokens: jax.Array

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        return jnp.where(_token_mask(scores.shape[-1], self.tokens), -jnp.inf, scores)


@struct.dataclass
class BeginSuppressTokens:
    """Bans tokens in the first position (torch's SuppressTokensAtBeginLogitsProcessor).

    Attributes:
      tokens: int32 [m]. length: int32 scalar, of the sequences when they are banned.
      after_bos: whether that is one more in a row whose prompt, behind pads, is the start token alone.
    """

    tokens: jax.Array
    length: jax.Array
    after_bos: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        length = self.length
        if self.after_bos and context.prompt_starts is not None:
            length = length + (context.prompt_length - context.prompt_starts[:, None, None] == 1)  # [batch, 1, 1]
        banned = _token_mask(scores.shape[-1], self.tokens) & (context.length == length)
        return jnp.where(banned, -jnp.inf, scores)


@struct.dataclass
class WordTable:
    """What each token of a vocabulary adds to a word, made by `word_table`.

    Attributes:
      starts: bool [tokens], whether the token starts a word. filled: bool [tokens], whether it has text.
      hashes, powers: uint32 [tokens, 2]: a word's hash after a token is its hash before, times the power, plus the
        token's hash (a rolling hash, twice).
    """

    starts: jax.Array
    filled: jax.Array
    hashes: jax.Array
    powers: jax.Array


@struct.dataclass
class BlockRepeatedWords:
    """Drops hypotheses that repeat n words in a row, where the last may be the beginning of a word (Liu & Lapata 2019;
    PreSumm's block_trigram). For beam search.

    All continuations of such a hypothesis lose 1e6; where every beam of a row repeats, the best goes on (PreSumm, which
    subtracts 1e21, then chooses by chance). Applied after normalisation, which would undo it.

    Attributes:
      n: how many words. words: of the vocabulary.
    """

    words: WordTable
    n: int = struct.field(pytree_node=False)

    def __call__(self, scores: jax.Array, context: DecodingContext) -> jax.Array:
        hashes, count = self._word_hashes(context)
        windows = hashes.shape[-2] - self.n
        if windows <= 0:
            return scores
        match = jnp.arange(windows) < count - self.n  # [batch, n, windows]
        for k in range(self.n):
            last = jnp.take_along_axis(hashes, jnp.maximum(count - self.n + k, 0)[..., None], axis=-2)
            match &= jnp.all(hashes[..., k : k + windows, :] == last, axis=-1)
        return scores + jnp.where(jnp.any(match, axis=-1, keepdims=True), _BLOCKED, 0.0)

    def _word_hashes(self, context: DecodingContext) -> tuple[jax.Array, jax.Array]:
        """The hashes of each sequence's words, uint32 [batch, n, capacity, 2], and how many they are [batch, n, 1]."""

        def join(a, b):
            (starts_a, filled_a, hash_a, power_a), (starts_b, filled_b, hash_b, power_b) = a, b
            new = starts_b[..., None]
            hashes = jnp.where(new, hash_b, hash_a * power_b + hash_b)
            powers = jnp.where(new, power_b, power_a * power_b)
            return starts_a | starts_b, filled_b | (filled_a & ~starts_b), hashes, powers

        tables = (self.words.starts, self.words.filled, self.words.hashes, self.words.powers)
        parts = tuple(jnp.asarray(table)[context.sequences] for table in tables)  # [batch, n, capacity(, 2)]
        position = jnp.arange(context.sequences.shape[-1])
        if context.prompt_starts is not None:
            parts = (parts[0] | (position == context.prompt_starts[:, None, None]), *parts[1:])
        _, filled, hashes, _ = jax.lax.associative_scan(join, parts, axis=2)
        next_starts = jnp.concatenate([parts[0][..., 1:], jnp.ones_like(parts[0][..., :1])], axis=-1)
        # A word's hash stands at its last token; scatter those to the front: [batch, n, capacity] -> word by word.
        word_end = filled & context.token_mask & (next_starts | (position == context.length - 1))
        index = jnp.where(word_end, jnp.cumsum(word_end, axis=-1) - 1, len(position))
        b, j = jnp.ogrid[: index.shape[0], : index.shape[1]]
        packed = jnp.zeros_like(hashes).at[b[..., None], j[..., None], index].set(hashes, mode="drop")
        return packed, jnp.sum(word_end, axis=-1, keepdims=True)


def word_table(tokenizer: Any, vocab_size: int = 0) -> WordTable:
    """The WordTable of a vocabulary, made once for a tokenizer.

    Words are separated by blanks, and in WordPiece as by PreSumm's ' '.join(tokens).replace(' ##', '').split(). A token
    with a blank inside counts as one word.

    Args:
      tokenizer: has a `backend`, a tokenizers.Tokenizer.
      vocab_size: how many ids there are; an id that is no token is a word of its own.
    """
    return cached_per_tokenizer(tokenizer, ("words", vocab_size), lambda: _word_table(tokenizer, vocab_size))


def _word_table(tokenizer: Any, vocab_size: int) -> WordTable:
    texts, starts = word_pieces(tokenizer)
    others = [b"\0%d" % id for id in range(len(texts), vocab_size)]
    codes, lengths = byte_table(texts + others)
    random = np.random.default_rng(0)
    of_byte = random.integers(2**32, size=(256, 2), dtype=np.uint32)
    base = random.integers(2**32, size=2, dtype=np.uint32) | 1
    hashes, powers = np.zeros((len(codes), 2), np.uint32), np.ones((len(codes), 2), np.uint32)
    for i in range(codes.shape[1]):
        longer = np.flatnonzero(lengths > i)  # the tokens with a byte i
        hashes[longer] = hashes[longer] * base + of_byte[codes[longer, i]]
        powers[longer] *= base
    starts = np.concatenate([starts, np.ones(len(others), bool)])
    return WordTable(starts, lengths > 0, hashes, powers)


def mask_scores(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores plus a mask of 0 and -inf [batch, n, vocab]; the mask alone where all sequences of a row are -inf."""
    scores = scores + mask
    all_banned = jnp.all(jnp.max(scores, axis=-1) == -jnp.inf, axis=1)  # [batch]
    return jnp.where(all_banned[:, None, None], mask, scores)


def _token_mask(vocab: int, ids: jax.Array) -> jax.Array:
    """bool [vocab]: True at ids [m]; ids beyond the vocabulary drop."""
    return jnp.zeros(vocab, bool).at[ids].set(True, mode="drop")


def _force_tokens(scores: jax.Array, ids: jax.Array, when: jax.Array) -> jax.Array:
    """Where `when`, bans all tokens but ids [m], whose scores become 0."""
    return jnp.where(when, jnp.where(_token_mask(scores.shape[-1], ids), 0.0, -jnp.inf), scores)


def _penalise_tokens(scores: jax.Array, ids: jax.Array, mask: jax.Array, penalty: jax.Array) -> jax.Array:
    """Multiplies the scores of ids [batch, n, m] by the penalty if negative, else divides them, where `mask`."""
    old = jnp.take_along_axis(scores, jnp.minimum(ids, scores.shape[-1] - 1), axis=-1)  # [batch, n, m]
    new = jnp.where(old < 0, old * penalty, old / penalty)
    return set_scores(scores, jnp.where(mask, ids, scores.shape[-1]), new)


def _ban_repeated_ngrams(
    scores: jax.Array, context: DecodingContext, text: jax.Array, mask: jax.Array, n: int
) -> jax.Array:
    """Bans tokens that would complete an n-gram of text [batch, n or 1, m], whose tokens are those in `mask`."""
    windows, sequences = text.shape[-1] - n + 1, context.sequences
    if windows <= 0 or sequences.shape[-1] < n - 1:
        return scores
    valid = (context.unpadded_length >= n - 1) & jnp.stack([mask[..., k : k + windows] for k in range(n)]).all(axis=0)
    match = jnp.broadcast_to(valid, (*sequences.shape[:2], windows))
    last = jax.lax.dynamic_slice_in_dim(sequences, context.length - (n - 1), n - 1, axis=-1)  # [batch, n, n-gram - 1]
    for k in range(n - 1):
        match &= text[..., k : k + windows] == last[..., k : k + 1]
    return set_scores(scores, jnp.where(match, text[..., n - 1 :], scores.shape[-1]), -jnp.inf)
