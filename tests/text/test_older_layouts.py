"""Sentencepiece models, trained here, through transformers: the ids and texts of its tokenizers, without torch."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from tokenizers.processors import TemplateProcessing

from seq2seq_jax.text.tokenizer import Tokenizers, load_tokenizer
from seq2seq_jax.text.tokenizer_classes import TOKENS
from tests.text.tokenizer_layouts import CORPUS, TRAINING, assert_same, token, write_json

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

T5 = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
BYTES = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
ALBERT = dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"])
REMBERT = dict(pad_id=0, bos_id=1, unk_id=2, eos_id=3, bos_piece="[CLS]", eos_piece="[SEP]")
BIG_BIRD = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=["[SEP]", "[MASK]", "[CLS]"])
DEBERTA = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]")
DEBERTA = {**DEBERTA, "unk_piece": "[UNK]", "normalization_rule_name": "identity"}
GEMMA = {**BYTES, **dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>")}
GEMMA = {**GEMMA, "user_defined_symbols": ["<mask>", "[", "<new>"], "add_dummy_prefix": False}
GENERATION = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3)
GENERATION = {**GENERATION, "user_defined_symbols": ["<::::>", "Added", "ord", "he", "ing a"]}

# Name -> tokenizer class, file name, trainer options, tokenizer_config.json.
LAYOUTS = {
    "t5": ("T5Tokenizer", "spiece.model", T5, {}),
    "t5_listed": (
        "T5Tokenizer",
        "spiece.model",
        T5,
        {"extra_ids": 3, "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]},
    ),
    "xlm_roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model", {}, {"model_max_length": 512}),
    "xlm_roberta_mask": (
        "XLMRobertaTokenizer",
        "sentencepiece.bpe.model",
        {},
        {"mask_token": {"__type": "AddedToken", **token("<mask>", lstrip=True)}},
    ),
    "camembert": ("CamembertTokenizer", "sentencepiece.bpe.model", {}, {}),
    "mbart": ("MBartTokenizer", "sentencepiece.bpe.model", {}, {"src_lang": "de_DE", "tgt_lang": "fr_XX"}),
    "mbart50": ("MBart50Tokenizer", "sentencepiece.bpe.model", {}, {"src_lang": "de_DE"}),
    "albert": ("AlbertTokenizer", "spiece.model", ALBERT, {}),
    "albert_cased": ("AlbertTokenizer", "spiece.model", ALBERT, {"do_lower_case": False, "keep_accents": True}),
    "rembert": ("RemBertTokenizer", "sentencepiece.model", REMBERT, {}),
    "big_bird": ("BigBirdTokenizer", "spiece.model", BIG_BIRD, {}),
    "pegasus": ("PegasusTokenizer", "spiece.model", T5, {}),
    "deberta_v2": ("DebertaV2Tokenizer", "spm.model", DEBERTA, {}),
    "deberta_v2_lower": ("DebertaV2Tokenizer", "spm.model", DEBERTA, {"do_lower_case": True, "split_by_punct": True}),
    "llama": ("LlamaTokenizer", "tokenizer.model", BYTES, {"add_bos_token": True}),
    "llama_legacy": ("LlamaTokenizer", "tokenizer.model", BYTES, {"legacy": True, "add_eos_token": True}),
    "gemma": ("GemmaTokenizer", "tokenizer.model", GEMMA, {"add_bos_token": True}),
    "bert_generation": ("BertGenerationTokenizer", "spiece.model", GENERATION, {}),
    "bert_generation_bpe": ("BertGenerationTokenizer", "spiece.model", {**GENERATION, "model_type": "bpe"}, {}),
}


def train(path, **options):
    """Trains a small model on part of the corpus and moves it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = path.with_suffix(".txt")
    sentences.write_text("\n".join(TRAINING + [line.lower() for line in TRAINING]), encoding="utf-8")
    options = {"vocab_size": 330 if options.get("byte_fallback") else 150, "hard_vocab_limit": False, **options}
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences), model_prefix=str(path.with_suffix("")), minloglevel=2, num_threads=1, **options
    )
    trained = path.parent / f"{path.with_suffix('').name}.model"
    if trained != path:
        trained.rename(path)
    for extra in (sentences, path.with_suffix(".vocab")):
        extra.unlink(missing_ok=True)
    return path


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root, trained, made = tmp_path_factory.mktemp("sentencepiece"), {}, {}
    for name, (class_name, file, options, config) in LAYOUTS.items():
        key = repr(sorted(options.items()))
        if key not in trained:
            trained[key] = train(root / f"model{len(trained)}" / "m.model", **options)
        made[name] = root / name
        made[name].mkdir()
        shutil.copy(trained[key], made[name] / file)
        write_json(made[name] / "tokenizer_config.json", {"tokenizer_class": class_name, **config})
    return made


@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_torch(name, layouts, tmp_path):
    """From the files as they are, as we save them, and as torch saves them."""
    theirs = transformers.AutoTokenizer.from_pretrained(layouts[name])
    assert type(theirs).__name__ == LAYOUTS[name][0]
    ours = load_tokenizer(layouts[name])
    theirs.save_pretrained(tmp_path / "theirs")
    if name == "rembert":  # torch forgets [CLS] and [SEP] where there is no tokenizer.json
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert_same(ours, theirs)
    ours.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.encode_batch(CORPUS) == ours.encode_batch(CORPUS)
    assert_same(again, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))
    assert_same(load_tokenizer(tmp_path / "theirs"), theirs)


def test_every_class_with_known_tokens_is_tested():
    tested = {class_name.removesuffix("Tokenizer") for class_name, *_ in LAYOUTS.values()}
    assert tested == TOKENS.keys() - {"Nllb", "XGLM"}  # XGLM is refused below


@pytest.mark.parametrize("name", ["t5", "xlm_roberta", "albert"])
def test_tokens_that_no_file_names(name, layouts, tmp_path):
    """A tokenizer.json beside a config.json alone."""
    theirs = transformers.AutoTokenizer.from_pretrained(layouts[name])
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {"model_type": {"xlm_roberta": "xlm-roberta"}.get(name, name)})
    ours = load_tokenizer(tmp_path)
    ours.save(tmp_path / "again")
    for tokenizer in (ours, load_tokenizer(tmp_path / "again")):
        for special in ("pad", "bos", "eos", "cls", "sep", "unk"):
            assert getattr(tokenizer, f"{special}_token_id") == getattr(theirs, f"{special}_token_id")
        assert tokenizer.encode_batch(CORPUS) == [theirs(line).input_ids for line in CORPUS]


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # so that importing it fails
from seq2seq_jax.text.tokenizer import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
assert "transformers" in sys.modules
print(json.dumps(tokenizer.encode_batch(json.loads(sys.argv[2]))))
"""


def test_needs_no_torch(layouts):
    lines = [CORPUS[1], CORPUS[2]]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(layouts["t5"]), json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = transformers.AutoTokenizer.from_pretrained(layouts["t5"])
    assert json.loads(done.stdout) == [theirs(line).input_ids for line in lines]


@pytest.mark.parametrize("package", ["transformers", "sentencepiece", "google.protobuf"])
def test_the_extra_is_missing(package, layouts, tmp_path, monkeypatch):
    """A saved tokenizer needs it no more."""
    ours = load_tokenizer(layouts["t5"])
    ours.save(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert load_tokenizer(tmp_path).encode_batch(CORPUS) == ours.encode_batch(CORPUS)
    message = (
        rf"^{re.escape(str(layouts['t5']))}: spiece.model of a T5Tokenizer is read by transformers, and {package} is"
        r" not installed; run: pip install 'seq2seq_jax\[tokenizers\]'$"
    )
    with pytest.raises(ImportError, match=message):
        load_tokenizer(layouts["t5"])


def encode_target(tokenizer, lines):
    """As torch does with text_target=..., which must not reach the next call."""
    return [tokenizer(text_target=line).input_ids for line in lines]


@pytest.mark.parametrize("name", ["mbart", "mbart50"])
def test_languages_of_the_two_sides(name, layouts, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(layouts[name])
    pair = Tokenizers.load(layouts[name], layouts[name])
    assert pair.source.encode_batch(CORPUS) == [theirs(line).input_ids for line in CORPUS]
    assert pair.target.encode_batch(CORPUS) == encode_target(theirs, CORPUS)
    different = pair.source.encode_batch("fox") != pair.target.encode_batch("fox")
    assert different == (theirs.tgt_lang not in (None, theirs.src_lang))
    pair.save(tmp_path)
    again = Tokenizers.load(tmp_path, tmp_path)
    assert again.source.encode_batch(CORPUS) == pair.source.encode_batch(CORPUS)
    assert again.target.encode_batch(CORPUS) == pair.target.encode_batch(CORPUS)


def test_a_language_that_is_no_token(layouts, tmp_path):
    transformers.AutoTokenizer.from_pretrained(layouts["mbart"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", {**config, "tgt_lang": "fr"})
    assert load_tokenizer(tmp_path).encode_batch(CORPUS) == load_tokenizer(layouts["mbart"]).encode_batch(CORPUS)
    with pytest.raises(ValueError, match="the target language 'fr' is no token; correct src_lang or tgt_lang"):
        load_tokenizer(tmp_path, "target")


def test_a_language_in_plbarts_spelling(layouts, tmp_path):
    """A tokenizer.json of PLBart: "java" in the config, __java__ around a text."""
    theirs = transformers.AutoTokenizer.from_pretrained(layouts["t5"])
    backend = theirs.backend_tokenizer
    backend.add_special_tokens(["__java__", "__en_XX__"])
    java, english = backend.token_to_id("__java__"), backend.token_to_id("__en_XX__")
    backend.post_processor = TemplateProcessing(
        "$A </s> __java__", "$A $B </s> __java__", [("</s>", 1), ("__java__", java)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PLBartTokenizer", "eos_token": "</s>", "src_lang": "java", "tgt_lang": "en_XX"}
    write_json(tmp_path / "tokenizer_config.json", config)
    for side, code in (("source", java), ("target", english)):
        assert load_tokenizer(tmp_path, side).encode_batch("fox")[0][-2:] == [1, code]


def directory(path, **files):
    path.mkdir()
    for file, content in files.items():
        name = file.replace("_json", ".json").replace("_txt", ".txt").replace("_model", ".model")
        (path / name).write_bytes(content)
    return path


SLOW = {
    "plbart": ("PLBartTokenizer", "sentencepiece.bpe.model"),
    "gpt_sw3": ("GPTSw3Tokenizer", "spiece.model"),
    "marian": ("MarianTokenizer", "source.spm", "target.spm"),
    "esm": ("EsmTokenizer", "vocab.txt"),
}


@pytest.mark.parametrize("name", SLOW)
def test_classes_without_a_fast_form(name, layouts, tmp_path):
    class_name, *files = SLOW[name]
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": class_name})
    for file in files:
        shutil.copy(layouts["t5"] / "spiece.model", tmp_path / file)
    if name == "esm":
        (tmp_path / "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\na\n")
    write_json(tmp_path / "vocab.json", {"</s>": 0, "<unk>": 1, "<pad>": 2})
    with pytest.raises(ValueError, match=rf"^{tmp_path}: {class_name} has no fast form in transformers, so .*json$"):
        load_tokenizer(tmp_path)


def test_refused_models(layouts, tmp_path):
    good, t5 = (layouts["t5"] / "spiece.model").read_bytes(), b'{"model_type": "t5"}'
    for name, content in (("cut", good[:-7]), ("text", b"version https://git-lfs")):
        with pytest.raises(ValueError, match=r"spiece.model: not a sentencepiece model; fetch"):
            load_tokenizer(directory(tmp_path / name, spiece_model=content, config_json=t5))
    with pytest.raises(ValueError, match="without pieces"):
        load_tokenizer(directory(tmp_path / "empty", spiece_model=b"", config_json=t5))
    with pytest.raises(ValueError, match=r"unknown tokenizer kind for spiece.model; name its class .such as 'T5"):
        load_tokenizer(directory(tmp_path / "kind", spiece_model=good))
    words = train(tmp_path / "word" / "spiece.model", model_type="word").read_bytes()
    with pytest.raises(ValueError, match=r"of type 3 .word or char.; only unigram and BPE"):
        load_tokenizer(directory(tmp_path / "words", spiece_model=words, config_json=t5))
    # transformers makes a tokenizer of eleven tokens of it.
    xglm = directory(tmp_path / "xglm", **{"sentencepiece.bpe_model": good}, config_json=b'{"model_type": "xglm"}')
    with pytest.raises(ValueError, match=r"XGLMTokenizer of transformers leaves out \d+ pieces of its sentencepiece"):
        load_tokenizer(xglm)
    strange = b'{"tokenizer_class": "NoSuchTokenizer"}'
    with pytest.raises(ValueError, match=r"^[^\n]*: transformers cannot read this tokenizer .*; give a directory"):
        load_tokenizer(directory(tmp_path / "strange", vocab_txt=b"a\n", tokenizer_config_json=strange))
