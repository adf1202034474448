"""Tokenizers of GGUF files: the ids and texts of transformers' reading of the same file."""

import pytest

from seq2seq_jax.text.tokenizer import load_tokenizer
from tests.text.gguf_tokenizer_files import TEXTS, byte_pairs, sentence_pieces
from tests.text.tokenizer_layouts import CORPUS, assert_same

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def theirs(path):
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("pre", ["gpt-2", "default", None, "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level(pre, tmp_path):
    path = byte_pairs(tmp_path / "model.gguf", pre)
    ours = load_tokenizer(path)
    assert_same(ours, theirs(path), [*CORPUS, *TEXTS])
    assert ours.encode_batch(["a<|end|>b<|end|>"]) == load_tokenizer(tmp_path).encode_batch(["a<|end|>b<|end|>"]), (
        "by its directory"
    )


def test_digits_of_smollm(tmp_path):
    """transformers has no rule for "smollm"; the models' own tokenizer.json cuts digits first, as llama.cpp does."""
    from tokenizers import pre_tokenizers

    path = byte_pairs(tmp_path / "model.gguf", "smollm")
    ours, judge = load_tokenizer(path), theirs(path)
    assert judge("x   42").input_ids != ours.encode_batch(["x   42"])[0]
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    judge.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    assert_same(ours, judge, [*CORPUS, *TEXTS])


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False, "add_eos_token": True}])
def test_sentencepiece(arch, flags, tmp_path):
    path, model = sentence_pieces(tmp_path / "model.gguf", arch, **flags)
    ours = load_tokenizer(path)
    assert_same(ours, theirs(path), [*CORPUS, *TEXTS])
    for text in ("The quick brown fox", "Hello world, don't  you", "日本 é 😀", "over the lazy dog. 12 345"):
        assert ours.encode_batch([text], add_special_tokens=False) == [model.encode(text)], "the sentencepiece library"


@pytest.mark.parametrize(
    "make", [lambda path: byte_pairs(path, "qwen2"), lambda path: sentence_pieces(path, "llama")[0]]
)
def test_saved(make, tmp_path):
    """As a tokenizer.json, which torch reads."""
    path = make(tmp_path / "model.gguf")
    ours = load_tokenizer(path)
    ours.save(tmp_path / "saved")
    for judge in (transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), theirs(path)):
        assert_same(ours, judge, [*CORPUS, *TEXTS], exact_texts=False)
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode_batch(TEXTS) == ours.encode_batch(TEXTS) and again.eos_token_id == ours.eos_token_id


def test_refused(tmp_path):
    from tests.weights.gguf_writing import write_tokenizer

    with pytest.raises(ValueError, match=r"model.gguf: tokenizer.ggml.pre 'bloom' is not known \(default, gpt-2"):
        load_tokenizer(byte_pairs(tmp_path / "model.gguf", "bloom"))
    with pytest.raises(ValueError, match="a tokenizer of the kind 'rwkv' is not read from GGUF; gpt2 and llama are"):
        load_tokenizer(write_tokenizer(tmp_path / "b.gguf", "rwkv", ["a"]))
    with pytest.raises(ValueError, match="outside the 1 tokens"):
        load_tokenizer(write_tokenizer(tmp_path / "c.gguf", "gpt2", ["a"], bos_token_id=7))
    with pytest.raises(ValueError, match="holds no tokenizer; give the directory"):
        load_tokenizer(write_tokenizer(tmp_path / "d.gguf", "gpt2", []))
