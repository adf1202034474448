"""`tokenizer(texts)` and transformers' own tokenizers, as the model, `generate`, `score` and saving take them."""

import json

import datasets
import numpy as np
import pytest

import seq2seq_jax as s2s
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.encoding import encode_pairs
from seq2seq_jax.text.tokenizer import load_tokenizer
from tests.text.tokenizer_layouts import CORPUS, write_byte_pairs, write_json, write_word_piece
from tests.weights.checkpoints import BERT, make_pair

TEXTS = ["The quick brown fox", "lazy dog", "jumps over the lazy dog again"]
LENGTH = 9


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_word_piece(
        tmp_path_factory.mktemp("calls") / "bert", tokenizer_config={"tokenizer_class": "BertTokenizer"}
    )


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def pair(tokenizer):
    config = {**BERT, "num_hidden_layers": 1, "vocab_size": tokenizer.vocab_size}
    return make_pair(config, config)


def sided(directory, path, **config):
    (path / "vocab.txt").write_bytes((directory / "vocab.txt").read_bytes())
    write_json(path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})
    return load_tokenizer(path)


@pytest.mark.parametrize("padding_side", [None, "right", "left"])
def test_rows_are_padded_to_the_longest(directory, tmp_path, padding_side):
    ours = sided(directory, tmp_path, **({"padding_side": padding_side} if padding_side else {}))
    rows, batch = ours.encode_batch(TEXTS), ours(TEXTS)
    assert set(batch) == {"input_ids", "attention_mask"}
    longest = max(map(len, rows))
    for name, array in batch.items():
        assert isinstance(array, np.ndarray) and array.dtype == np.int32 and array.shape == (3, longest), name
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"]):
        on = slice(longest - len(row), None) if padding_side == "left" else slice(0, len(row))
        assert ids[on].tolist() == row and mask[on].all() and mask.sum() == len(row)
        assert (ids[mask == 0] == ours.pad_token_id).all()
    one = ours(TEXTS[1])
    assert one["input_ids"].tolist() == [rows[1]] and one["attention_mask"].all()
    assert ours([])["input_ids"].shape == (0, 0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_max_length_cuts(directory, tmp_path, side):
    ours = sided(directory, tmp_path, truncation_side=side)
    whole = ours.encode_batch(TEXTS[2], add_special_tokens=False)[0]
    ids = ours(TEXTS, max_length=5)["input_ids"]
    assert ids.shape == (3, 5)
    assert ids[2].tolist() == [2, *(whole[:3] if side == "right" else whole[-3:]), 3]
    assert ours(TEXTS[2], add_special_tokens=False)["input_ids"].tolist() == [whole]


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["bert", "gpt2", "left"])
def test_equals_torch(kind, directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = directory
    if kind != "bert":
        config = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|endoftext|>"}
        config |= {"padding_side": "left"} if kind == "left" else {}
        path = write_byte_pairs(tmp_path / kind, ["<|endoftext|>"], tokenizer_config=config)
    ours, theirs = load_tokenizer(path), transformers.AutoTokenizer.from_pretrained(path)
    for options in ({}, {"max_length": 6}):
        want = theirs(CORPUS, padding=True, return_tensors="np", truncation=bool(options), **options)
        got = ours(CORPUS, **options)
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(got[name], want[name])


def test_goes_into_the_model_and_generate(pair, tokenizer):
    batch = tokenizer(TEXTS, max_length=LENGTH)
    generated = pair.generate(**batch, max_new_tokens=4)
    assert generated.sequences.shape[0] == 3
    labels = tokenizer(TEXTS, max_length=LENGTH)["input_ids"]
    assert np.isfinite(pair.model.apply({"params": pair.params}, **batch, labels=labels).loss)
    scored = s2s.score(pair.model, pair.params, *batch.values(), labels)
    assert np.isfinite(scored.sequence_log_probs).all()


@pytest.mark.parity
@pytest.mark.parametrize("tensors", ["np", "pt", None])
def test_batch_encodings(tensors, pair, tokenizer, directory):
    """What transformers' tokenizers return: mappings with token_type_ids too, arrays of either library, or lists."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    encoding = theirs(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors=tensors)
    batch = tokenizer(TEXTS, max_length=LENGTH)
    want = pair.generate(**batch, max_new_tokens=4).sequences
    assert pair.generate(**encoding, max_new_tokens=4).sequences.tolist() == want.tolist()
    given = {**batch, "labels": batch["input_ids"]}
    loss = pair.model.apply({"params": pair.params}, **given).loss
    ours = pair.model.apply({"params": pair.params}, **encoding, labels=encoding["input_ids"]).loss
    np.testing.assert_allclose(ours, loss, rtol=1e-5)


IDS = [[2, 5, 6, 3], [2, 7, 3, 0]]
RAGGED = [[2, 5, 6, 3], [2, 7, 3]]
CALLS = {
    "apply": lambda pair, **given: pair.model.apply({"params": pair.params}, **given),
    "generate": lambda pair, labels, **given: pair.generate(**given, max_new_tokens=4),
    "score": lambda pair, **given: s2s.score(pair.model, pair.params, **given),
    "transition_scores": lambda pair, labels, **given: s2s.transition_scores(pair.model, pair.params, **given),
}


@pytest.mark.parametrize(
    "call, name",
    [
        *(("apply", name) for name in ("input_ids", "attention_mask", "labels", "decoder_input_ids", "token_type_ids")),
        *(("generate", name) for name in ("input_ids", "attention_mask", "decoder_input_ids", "token_type_ids")),
        ("generate", "decoder_attention_mask"),
        *(("score", name) for name in ("input_ids", "attention_mask", "labels")),
        *(("transition_scores", name) for name in ("input_ids", "sequences")),
    ],
)
@pytest.mark.parametrize("rows", [list, lambda row: np.array(row)], ids=["lists", "arrays"])
def test_ragged_lists_are_refused_by_name(call, name, rows, pair):
    given = {"input_ids": IDS, "attention_mask": [[1] * 4] * 2, "labels": IDS}
    if call == "transition_scores":
        given["sequences"] = IDS
    if name == "decoder_attention_mask":
        given["decoder_input_ids"] = IDS
    given[name] = [rows(row) for row in RAGGED]
    with pytest.raises(ValueError, match=rf"^{name} is a ragged list, with rows of 3 to 4; pad it: tokenizer\(texts\)"):
        CALLS[call](pair, **given)


SAVE = [s2s.save_pretrained, s2s.save_decoder, s2s.save_encoder, s2s.save_orbax]


@pytest.mark.parity
@pytest.mark.parametrize("save", SAVE, ids=lambda save: save.__name__)
def test_a_fast_tokenizer_of_transformers_is_saved_whole(save, pair, tokenizer, directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    theirs.add_tokens(["lazydog"])
    theirs.chat_template = "{{ messages }}"
    save(tmp_path / "pair", pair, tokenizer=theirs)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "pair")
    assert again.chat_template == theirs.chat_template
    lines = [*CORPUS, "a lazydog"]
    want = [theirs(line).input_ids for line in lines]
    assert [again(line).input_ids for line in lines] == want == load_tokenizer(tmp_path / "pair").encode_batch(lines)
    assert want[-1] != tokenizer.encode_batch("a lazydog")[0]


@pytest.mark.parity
@pytest.mark.parametrize("save", SAVE, ids=lambda save: save.__name__)
@pytest.mark.parametrize("name", ["tokenizer", "target_tokenizer"])
def test_others_are_refused_before_anything_is_written(save, name, pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    if name == "target_tokenizer" and save in (s2s.save_decoder, s2s.save_encoder):
        pytest.skip("takes one tokenizer")
    (tmp_path / "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\na\n")
    slow = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    for given, said in ((slow, "EsmTokenizer of transformers, which has no fast form"), ("bert", "str; give what")):
        with pytest.raises(ValueError, match=rf"^{name} is a {said}"):
            save(tmp_path / "pair", pair, **{name: given})
        assert not (tmp_path / "pair").exists()


@pytest.mark.parity
def test_tokenizers_of_transformers_at_the_other_doors(pair, tokenizer, directory):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(TEXTS, max_length=LENGTH)
    word = tokenizer.decode(pair.generate(**batch, max_new_tokens=1).sequences[0, 1:])
    options = {"max_new_tokens": 4, "num_beams": 2, "stop_strings": [word or "a"], "no_repeat_word_ngram_size": 1}
    outputs = [pair.generate(**batch, **options, tokenizer=given).sequences.tolist() for given in (tokenizer, theirs)]
    assert outputs[0] == outputs[1]
    with pytest.raises(ValueError, match="tokenizer is a str; give what load_tokenizer returns, or a fast tokenizer"):
        pair.generate(**batch, **options, tokenizer="bert")
    texts = datasets.Dataset.from_dict({"source": TEXTS, "target": TEXTS[::-1]})
    settings = DataConfig(train="x", max_source_length=LENGTH, max_target_length=LENGTH)
    encoded = [
        encode_pairs(texts, given, given, settings, "these").select(np.arange(3)) for given in (tokenizer, theirs)
    ]
    assert encoded[0] == encoded[1]
    assert json.dumps(encoded[0][0]) == json.dumps(tokenizer.encode_batch(TEXTS, max_length=LENGTH))
