"""Processors and warpers: small cases worked out by hand, words, and what compiles."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import struct
from tokenizers import decoders, models

from seq2seq_jax.config import GenerationConfig, generation_from_hf, generation_to_hf
from seq2seq_jax.decoding import processor_list, processors, warpers
from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.logits import View, process
from seq2seq_jax.decoding.loop import Rules
from seq2seq_jax.decoding.vocabulary import token_texts
from seq2seq_jax.models.cpu import top_k
from tests.decoding.kinds import jitted

BANNED = -np.inf
run = jitted(process)


def view_of(sequences, length=None, source=((0,),), source_mask=None, **memory):
    """A view of one row."""
    sequences, source = np.array([sequences], np.int32), np.array(source, np.int32)
    length = sequences.shape[-1] if length is None else length
    mask = np.ones(source.shape, bool) if source_mask is None else np.array(source_mask)
    return View(sequences, np.int32(length), np.int32(1), source, mask, memory)


def apply(processor, scores, view):
    return np.asarray(run(np.array([scores], np.float32), view, (processor,))[0])


def test_rows_beyond_the_vocabulary():
    got = apply(processors.PaddedRows(2), [[1, 2, 3]], view_of([[0]]))
    np.testing.assert_array_equal(got, [[1, 2, BANNED]])
    got = apply(processors.RemoveInvalid(2), [[np.nan, BANNED, 3]], view_of([[0]]))
    np.testing.assert_array_equal(got, [[0, np.finfo(np.float32).min, BANNED]])


@pytest.mark.parametrize("rows", [50, 1990, 2048])
@pytest.mark.parametrize("different", [3, 40, 100_000])
def test_the_highest_are_those_of_top_k(rows, different):
    random = np.random.default_rng(rows + different)
    scores = random.integers(-different, 0, (2, 3, rows)).astype(np.float32)
    scores[0, 0] = -np.inf
    scores[0, 1, :-2] = -np.inf
    scores[1, 2] = np.sort(scores[1, 2])
    for count in (1, 5, 9):
        for ours, theirs in zip(top_k(scores, count), jax.lax.top_k(scores, count)):
            np.testing.assert_array_equal(ours, theirs)


def test_sequence_bias():
    pairs = [([1], 10.0), ([1], 1.0), ([2, 3], 2.0), ([0, 2, 3], 4.0), ([0, 0, 0, 0, 3], 100.0)]
    bias = processors.SequenceBias.from_pairs(pairs)
    view = view_of([[0, 2, 9], [1, 2, 9], [2, 0, 9]], length=2)
    np.testing.assert_array_equal(
        apply(bias, np.zeros((3, 4)), view), [[0, 1, 0, 6], [0, 1, 0, 2], [0, 1, 0, 0]]
    )  # fmt: skip


def test_source_processors_pass_over_padding():
    view = view_of([[0, 1], [0, 3]], source=[[1, 2, 3, 4]], source_mask=[[True, True, True, False]])
    got = apply(processors.EncoderRepetitionPenalty(np.float32(2)), [[1, 1, -1, 1, 1]] * 2, view)
    np.testing.assert_array_equal(got, [[1, 2, -0.5, 2, 1]] * 2)
    got = apply(processors.EncoderNoRepeatNGram(2), np.zeros((2, 5)), view)
    np.testing.assert_array_equal(got, [[0, 0, BANNED, 0, 0], [0, 0, 0, 0, 0]])
    # What stands behind the sequence does not count.
    got = apply(processors.EncoderNoRepeatNGram(3), np.zeros((2, 5)), view_of([[1, 2]] * 2, 1, source=[[1, 2, 3, 4]]))
    np.testing.assert_array_equal(got, np.zeros((2, 5)))


def test_ngrams_and_repetition():
    view = view_of([[1, 2, 1, 2, 0], [0, 1, 2, 3, 0]], length=3)
    got = apply(processors.NoRepeatNGram(2), np.zeros((2, 4)), view)
    np.testing.assert_array_equal(got, [[0, 0, BANNED, 0], [0, 0, 0, 0]])
    got = apply(processors.NoRepeatNGram(1), np.zeros((2, 4)), view)
    np.testing.assert_array_equal(got, [[0, BANNED, BANNED, 0], [BANNED, BANNED, BANNED, 0]])
    got = apply(processors.NoRepeatNGram(9), np.zeros((2, 4)), view)
    np.testing.assert_array_equal(got, np.zeros((2, 4)))
    got = apply(processors.RepetitionPenalty(np.float32(2)), [[1, -1, 1, 1]] * 2, view)
    np.testing.assert_array_equal(got, [[1, -2, 0.5, 1], [0.5, -2, 0.5, 1]])


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_what_depends_on_the_length(length):
    view, scores, ends = view_of([[1, 0, 0, 0]], length=length), [[-1.0, 2.0, 3.0]], np.array([0, 1])

    def check(processor, when, then):
        np.testing.assert_allclose(apply(processor, scores, view), then if when else scores, rtol=1e-6)

    check(processors.MinLength(np.int32(3), ends), length < 3, [[BANNED, BANNED, 3]])
    check(processors.ForcedBos(np.int32(2)), length == 1, [[BANNED, BANNED, 0]])
    check(processors.ForcedEos(ends, np.int32(4)), length == 3, [[0, 0, BANNED]])
    check(processors.BeginSuppressTokens(ends, np.int32(2)), length == 2, [[BANNED, BANNED, 3]])
    check(processors.SuppressTokens(ends), True, [[BANNED, BANNED, 3]])
    grown = 1.5 ** max(0, length - 2) - 1
    decay = processors.ExponentialDecayLengthPenalty(np.int32(2), np.float32(np.log(1.5)), ends)
    check(decay, True, [[-1 + grown, 2 + 2 * grown, 3]])


def test_allowed_tokens():
    trie = TokenTrie.from_sequences([[1, 2], [1, 3]], end=0)
    processor = processors.AllowedTokens(trie)
    states = trie.next(jnp.array([[0, 0]]), jnp.array([[1, 3]]))
    got = apply(processor, [[5, 6, 7, 8]] * 2, view_of([[9], [9]], allowed=states))
    np.testing.assert_array_equal(got, [[BANNED, BANNED, 7, 8], [5, BANNED, BANNED, BANNED]])
    # All that is allowed was banned before, in one hypothesis, which goes, or in each: then it is free again.
    got = apply(processor, [[BANNED, 6, 7, 8]] * 2, view_of([[9], [9]], allowed=states))
    np.testing.assert_array_equal(got, [[BANNED, BANNED, 7, 8], [BANNED] * 4])
    got = apply(processor, [[BANNED, 6, BANNED, BANNED]] * 2, view_of([[9], [9]], allowed=states))
    np.testing.assert_array_equal(got, [[BANNED, BANNED, 0, 0], [0, BANNED, BANNED, BANNED]])


PROBS = [0.5, 0.05, 0.3, 0.15]


@pytest.mark.parametrize(
    "warper, kept",
    [
        (warpers.TopKTopP(np.int32(2), None, np.int32(1), 64), [0, 2]),
        (warpers.TopKTopP(np.int32(1), None, np.int32(3), 64), [0, 2, 3]),
        (warpers.TopKTopP(None, np.float32(0.6), np.int32(1)), [0, 2]),
        (warpers.TopKTopP(None, np.float32(0.01), np.int32(1)), [0]),
        (warpers.TopKTopP(np.int32(3), np.float32(0.84), np.int32(1), 3), [0, 2]),
        (warpers.TopKTopP(None, np.float32(0.84), np.int32(1)), [0, 2, 3]),
        (warpers.TopH(np.float32(0.7)), [0, 2]),
        (warpers.TopH(np.float32(0.01)), [0]),
        (warpers.MinP(np.float32(0.4)), [0, 2]),
        (warpers.MinP(np.float32(0.9), 3), [0, 2, 3]),
        # The entropy is 1.14; the four tokens tell 0.69, 3.0, 1.2 and 1.9.
        (warpers.TypicalP(np.float32(0.2), np.int32(1)), [2]),
        (warpers.TypicalP(np.float32(0.7), np.int32(1)), [0, 2]),
        (warpers.TypicalP(np.float32(0.1), np.int32(3)), [0, 2, 3]),
        (warpers.EpsilonCutoff(np.float32(0.1)), [0, 2, 3]),
        (warpers.EpsilonCutoff(np.float32(0.9), 2), [0, 2]),
        # sqrt(0.4) * exp(-1.14) = 0.2
        (warpers.EtaCutoff(np.float32(0.4)), [0, 2]),
        (warpers.EtaCutoff(np.float32(0.9), 3), [0, 2, 3]),
    ],
)
def test_warpers(warper, kept):
    scores = np.log(np.float32([PROBS])) + 3
    got = apply(warper, scores, view_of([[0]]))
    np.testing.assert_array_equal(got, np.where(np.isin(np.arange(4), kept), scores, BANNED))


def test_top_h_where_one_token_is_certain():
    """The others tell nothing, and yet are not kept."""
    got = apply(warpers.TopH(np.float32(0.5)), [[300.0, 0.0, 1.0]], view_of([[0]]))
    np.testing.assert_array_equal(got, [[300, BANNED, BANNED]])


def test_renormalize():
    got = apply(warpers.Renormalize(), [[0.0, 0.0], [BANNED, 1.0], [BANNED, BANNED]], view_of([[0]]))
    np.testing.assert_allclose(got, [[np.log(0.5)] * 2, [BANNED, 0], [BANNED, BANNED]], rtol=1e-6)


class Backed:
    def __init__(self, backend):
        self.backend = backend


def word_piece():
    """Words that can be spelled in several ways."""
    tokens = ["[UNK]", "[CLS]", "a", "ab", "b", "c", ".", "##a", "##b", "##ab", "##c", "[unused2]", "##"]
    backend = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return Backed(backend)


def byte_level():
    tokens = ["a", "b", "ab", "Ġ", "Ġa", "Ġab", "Ċ", "<s>", "Ġb"]
    backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="a"))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    return Backed(backend)


def marked():
    tokens = ["a", "b", "ab", "▁", "▁a", "▁ab", "</s>", "▁b"]
    backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="a"))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["</s>"])
    return Backed(backend)


def pieces_to_words(tokenizer, ids):
    backend = tokenizer.backend
    if isinstance(backend.model, models.WordPiece):  # as PreSumm has it
        return " ".join(backend.id_to_token(int(i)) for i in ids).replace(" ##", "").split()
    special = set(backend.get_added_tokens_decoder())
    return b"".join(b" " if i in special else token_texts(tokenizer)[i] for i in ids).split()


@pytest.mark.parametrize("kind", [word_piece, byte_level, marked])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_repeated_words(kind, n):
    tokenizer, rng = kind(), np.random.default_rng(n)
    size = tokenizer.backend.get_vocab_size()
    block = processors.BlockRepeatedWords(processors.word_table(tokenizer, 13), n)  # equal shapes compile once
    counts = collections.Counter()
    for length in range(2, 15, 2):
        # Few different tokens, or n-grams seldom come again.
        ids = np.stack([rng.choice(rng.integers(0, size, 4), 14) for _ in range(60)])
        if kind is word_piece:
            ids[:, 0] = 1  # a first token that continues a word is odd, and its prefix stays in PreSumm
        view = view_of(ids, length=length)
        blocked = apply(block, [[0, 0, BANNED]] * 60, view)
        for row, scores in zip(ids[:, :length], blocked):
            words = pieces_to_words(tokenizer, row)
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            repeated = len(words) > n and grams[-1] in grams[:-1]
            np.testing.assert_array_equal(scores, [*[-1e6 if repeated else 0] * 2, BANNED], str(words))
            counts[repeated] += 1
    assert counts[True] > 20 < counts[False]


def test_ids_beyond_the_tokenizer_are_words():
    block = processors.BlockRepeatedWords(processors.word_table(word_piece(), 20), 1)
    got = apply(block, np.zeros((3, 1)), view_of([[17, 2, 17], [17, 2, 18], [17, 17, 8]]))
    assert (got < 0).tolist() == [[True], [False], [False]]


def test_rows_may_be_vmapped():
    """With a length for each row."""
    rng = np.random.default_rng(0)
    config = GenerationConfig(
        num_beams=2, no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=2, repetition_penalty=1.3,
        sequence_bias=[([1, 2], 1.0), ([3], 0.5)], no_repeat_word_ngram_size=1, min_length=4,
        exponential_decay_length_penalty=(2, 1.2),
    )  # fmt: skip
    made = processor_list.processors_of(
        config, vocab_size=13, prompt_length=1, min_length=4, max_length=9, eos=(2,), tokenizer=word_piece()
    )
    lengths = jnp.array([2, 5, 8], jnp.int32)
    scores = jnp.asarray(rng.normal(size=(3, 2, 16)), jnp.float32)
    sequences, source = (jnp.asarray(rng.integers(0, 13, s), jnp.int32) for s in ((3, 2, 8), (3, 6)))

    @jax.jit
    def one(scores, sequences, length, source):
        return process(scores[None], View(sequences[None], length, 1, source[None], source[None] >= 0), made)[0]

    alone = [one(*row) for row in zip(scores, sequences, lengths, source)]
    together = jax.vmap(one)(scores, sequences, lengths, source)
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-6)
    assert np.isfinite(together).any()


@struct.dataclass
class Shift:
    by: float

    def __call__(self, scores, view):
        return scores + self.by


ALL = {
    "sequence_bias": ([([1, 2], 1.0), ([3], 0.5)], [([4, 5], -1.0), ([6], 3.0)]),
    "encoder_repetition_penalty": (1.2, 0.7),
    "repetition_penalty": (1.2, 0.7),
    "no_repeat_ngram_size": (2, 2),
    "encoder_no_repeat_ngram_size": (2, 2),
    "bad_words_ids": ([[1, 2], [3]], [[7, 2], [8]]),
    "forced_bos_token_id": (3, 4),
    "forced_eos_token_id": (2, 5),
    "remove_invalid_values": (True, True),
    "exponential_decay_length_penalty": ((2, 1.1), (3, 1.2)),
    "suppress_tokens": ([1], [7]),
    "begin_suppress_tokens": ([1], [7]),
    "no_repeat_word_ngram_size": (3, 3),
    "temperature": (0.5, 2.0),
    "top_h": (0.5, 0.9),
    "top_k": (50, 5),
    "top_p": (0.5, 0.9),
    "min_p": (0.1, 0.2),
    "typical_p": (0.5, 0.9),
    "epsilon_cutoff": (0.1, 0.2),
    "eta_cutoff": (0.1, 0.2),
}


def test_other_numbers_compile_nothing():
    once = jax.jit(lambda *arguments: process(*arguments))
    tokenizer = word_piece()
    for i in range(2):
        values = {name: pair[i] for name, pair in ALL.items()}
        config = GenerationConfig(num_beams=2, do_sample=True, **values)
        made = processor_list.processors_of(
            config,
            vocab_size=13,
            prompt_length=1,
            min_length=5 + i,
            max_length=9 + i,
            eos=(2,),
            custom=[Shift(np.float32(i))],
            tokenizer=tokenizer,
        )
        assert isinstance(made[-2], Shift) and isinstance(made[0], processors.PaddedRows)
        made += processor_list.warpers_of(config, beams=2, eos=(2,))
        once(np.zeros((1, 2, 16), np.float32), view_of([[1, 3, 4], [1, 2, 3]]), made)
    assert once._cache_size() == 1


def test_what_is_off_is_absent():
    made = processor_list.processors_of(
        GenerationConfig(), vocab_size=9, prompt_length=1, min_length=1, max_length=20, eos=(2,)
    )
    assert [type(one) for one in made] == [processors.PaddedRows]
    config = GenerationConfig(temperature=0.5, renormalize_logits=True)
    assert processor_list.warpers_of(config, beams=1, eos=(2,)) == ()
    made = processor_list.processors_of(config, vocab_size=9, prompt_length=1, min_length=1, max_length=20, eos=(2,))
    assert [type(one) for one in made] == [processors.PaddedRows, warpers.Renormalize]
    assert isinstance(
        processor_list.warpers_of(config.replace(do_sample=True), beams=1, eos=())[-1], warpers.Renormalize
    )
    # Words are counted after that, or it would be undone.
    words = config.replace(no_repeat_word_ngram_size=3, num_beams=2)
    lengths = {"prompt_length": 1, "min_length": 1, "max_length": 20}
    made = processor_list.processors_of(words, vocab_size=9, eos=(2,), tokenizer=word_piece(), **lengths)
    assert [type(one) for one in made[1:]] == [warpers.Renormalize, processors.BlockRepeatedWords]
    with pytest.raises(ValueError, match="renormalize_logits"):
        processor_list.processors_of(
            words.replace(do_sample=True), vocab_size=9, eos=(2,), tokenizer=word_piece(), **lengths
        )
    # The same settings as torch writes them.
    assert generation_from_hf({"top_k": 0, "num_beam_groups": 1, "diversity_penalty": 0.0, "suppress_tokens": [],
        "bad_words_ids": None, "renormalize_logits": None, "typical_p": 1.0}) == GenerationConfig(top_k=0)  # fmt: skip
    assert GenerationConfig(top_k=None).top_k == 0


def test_settings_survive_their_file():
    config = GenerationConfig(
        sequence_bias={(1, 2): 3}, force_words_ids=[[1, 2], [[3], [4, 5]]], stop_strings="end", bad_words_ids=[[1]],
        exponential_decay_length_penalty=[3, 1.5], suppress_tokens=np.array([4, 5]), eos_token_id=[1, 2],
    )  # fmt: skip
    written = generation_to_hf(config, {})
    assert written["sequence_bias"] == [[[1, 2], 3.0]] and written["force_words_ids"] == [[1, 2], [[3], [4, 5]]]
    assert generation_from_hf(written) == config
    assert hash(config) == hash(generation_from_hf(written))


@pytest.mark.parametrize(
    "bad",
    [
        {"sequence_bias": [[1, 2]]}, {"bad_words_ids": [1]}, {"bad_words_ids": [[]]}, {"suppress_tokens": [-1]},
        {"suppress_tokens": 3}, {"exponential_decay_length_penalty": (1, 0)}, {"exponential_decay_length_penalty": 2},
        {"force_words_ids": [1]}, {"force_words_ids": [[[1], []]]}, {"stop_strings": [""]}, {"min_p": 2},
        {"top_h": 0}, {"typical_p": 0}, {"epsilon_cutoff": 1}, {"eta_cutoff": -0.1}, {"renormalize_logits": "yes"},
        {"num_beams": 4, "num_beam_groups": 3}, {"num_beams": 4, "num_beam_groups": 2}, {"penalty_alpha": -1},
        {"max_time": 0}, {"prompt_lookup_num_tokens": 0}, {"coverage_penalty": -1}, {"gnmt_length_penalty": "a"},
        {"encoder_repetition_penalty": 0}, {"no_repeat_word_ngram_size": -1}, {"min_length": 1.5}, {"top_p": True},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_settings(bad):
    with pytest.raises(ValueError, match=list(bad)[-1]):
        GenerationConfig(**bad)


@pytest.mark.parametrize(
    "name, value",
    [("bad_words_ids", [[1, 9]]), ("sequence_bias", [[[9], 1.0]]), ("forced_bos_token_id", 9),
     ("forced_eos_token_id", [1, 9]), ("no_repeat_word_ngram_size", 3)],
)  # fmt: skip
def test_settings_that_do_not_fit(name, value):
    lengths = {"prompt_length": 1, "min_length": 1, "max_length": 20}
    for tokenizer in (None, word_piece()):
        with pytest.raises(ValueError, match=name):
            processor_list.processors_of(
                GenerationConfig(**{name: value}), vocab_size=9, eos=(2,), tokenizer=tokenizer, **lengths
            )
    with pytest.raises(ValueError, match="allowed has 9"):
        trie = TokenTrie.from_sequences([[1, 9], [3]], end=2)
        processor_list.processors_of(GenerationConfig(), vocab_size=9, eos=(2,), allowed=trie, **lengths)


def test_searches_by_rules_of_other_kinds_are_other_programs():
    numbers = {"max_length": 3, "prompt_length": 1, "pad_id": 0, "eos_ids": np.array([2])}
    kinds = [processors.RepetitionPenalty, processors.EncoderRepetitionPenalty, warpers.Temperature]
    found = [jax.tree.structure(Rules(processors=(kind(np.float32(2)),), **numbers)) for kind in kinds]
    assert all(a != b for a, b in itertools.combinations(found, 2)), "compiled as one and the same"
    same = Rules(processors=(kinds[0](np.float32(3)),), **numbers)
    assert jax.tree.structure(same) == found[0], "another number would compile"
