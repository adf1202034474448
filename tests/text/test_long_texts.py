"""Very long texts: the ids of the whole text, without tokenizing the whole text."""

import time

import pytest
import tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from seq2seq_jax.text.tokenizer import Tokenizer

WORDS = "the quick brown fox, jumps over the lazy dogs' backs. Größe für Äpfel 12345 "
LENGTH = 8


def word_piece():
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrst",
        "##a",
        "##b",
        "the",
        "quick",
        "##s",
        "好",
    ]
    backend = Backend(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend


def byte_level():
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS * 9, "a" * 30, " " * 30], trainer)
    return backend


def unigram():
    """Of a run of one letter the tokens depend on the run's length: the short one comes first."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -3.0), ("aa", -3.5), ("aaa", -4.0), ("▁the", -3.0), ("ab", -3.1)]
    backend = Backend(models.Unigram([*pieces, *((c, -5.0) for c in "bcdefghijklmno")], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


BACKENDS = {f.__name__: f() for f in (word_piece, byte_level, unigram)}
SIZE = 116_000  # enough for runs to be shortened
TEXTS = {
    "words": WORDS * (SIZE // len(WORDS)),
    "one letter": "a" * SIZE,
    "one letter more": "a" * (SIZE + 1),
    "one letter yet more": "a" * (SIZE + 2),
    "two letters": "ab" * (SIZE // 2),
    "spaces": " " * SIZE,
    "line breaks": "\r\n" * (SIZE // 2),
    "no spaces": "好" * (SIZE // 10),
    "spaces, then words": " " * SIZE + WORDS * 9,
    "a long word, then words": "a" * SIZE + " " + WORDS * 9,
    "words, then a long word": "the quick " + "b" * SIZE,
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_ids_are_those_of_the_whole_text(name, text, side):
    backend = BACKENDS[name]
    tokenizer = Tokenizer(backend, truncation_side=side)
    whole = backend.encode(TEXTS[text], add_special_tokens=False)
    count = len(whole)
    special = backend.num_special_tokens_to_add(False)
    whole.truncate(LENGTH - special, direction=side)
    expected = backend.post_process(whole).ids
    ids, counts = tokenizer.encode_and_count(["a", TEXTS[text], "b"], max_length=LENGTH)
    assert ids[1] == expected and tokenizer.encode_batch(TEXTS[text], max_length=LENGTH) == [expected]
    assert counts[1] == count or LENGTH < counts[1] < count
    short = [tokenizer.encode_batch(text, add_special_tokens=False)[0] for text in ("a", "b")]
    assert ids[::2] == tokenizer.encode_batch(["a", "b"]) and counts[::2] == list(map(len, short))


@pytest.mark.parametrize("text", ["words", "one letter", "spaces"])
def test_what_is_far_costs_nothing(text):
    """At the pace of the whole text the tokenizer would take a minute for each."""
    tokenizer, longer = Tokenizer(BACKENDS["word_piece"]), TEXTS[text] * 200
    begin = time.perf_counter()
    tokenizer.encode_batch([longer], max_length=LENGTH)
    assert time.perf_counter() - begin < 6


def test_counts_go_as_far_as_asked():
    tokenizer = Tokenizer(BACKENDS["word_piece"])
    text = "the quick " * 40_000
    for count_to in (0, 100, 3000):
        (ids,), (count,) = tokenizer.encode_and_count([text], max_length=8, count_to=count_to)
        assert len(ids) == 8 and max(8, count_to) < count < 80_000


def test_half_a_character_is_named():
    tokenizer = Tokenizer(BACKENDS["word_piece"])
    for options in ({}, {"max_length": 4}):
        with pytest.raises(ValueError, match=r"text 1 \(from 0\), 'cut \\ud83d', holds half a character"):
            tokenizer.encode_batch(["a", "cut \ud83d"], **options)
