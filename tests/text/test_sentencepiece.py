"""Sentencepiece models, trained here: the ids and texts of torch's tokenizers on both sides of a pair."""

import shutil

import pytest
from tokenizer_layouts import CORPUS, TRAINING, assert_same, token, write_json

from seq2seq_jax.text.sentencepiece_model import read_sentencepiece
from seq2seq_jax.text.tokenizer import Tokenizers, load_tokenizer
from seq2seq_jax.text.tokenizer_classes import KINDS

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
    "plbart": ("PLBartTokenizer", "sentencepiece.bpe.model", {}, {}),
    "plbart_language": ("PLBartTokenizer", "sentencepiece.bpe.model", {}, {"src_lang": "java", "tgt_lang": "en_XX"}),
    "gpt_sw3": ("GPTSw3Tokenizer", "spiece.model", {**BYTES, "normalization_rule_name": "nmt_nfkc"}, {}),
}


def train(path, extra_lines=(), **options):
    """Trains a small model on part of the corpus and moves it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = path.with_suffix(".txt")
    sentences.write_text("\n".join(TRAINING + [line.lower() for line in TRAINING] + [*extra_lines]), encoding="utf-8")
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
    # Its class joins pieces in Python: other spaces around special tokens, other signs for bytes that are no text.
    exact_texts = name != "gpt_sw3"
    theirs = transformers.AutoTokenizer.from_pretrained(layouts[name])
    assert type(theirs).__name__ == LAYOUTS[name][0]
    ours = load_tokenizer(layouts[name])
    if name != "rembert":  # torch forgets [CLS] and [SEP] where there is no tokenizer.json
        assert_same(ours, theirs, exact_texts=exact_texts)
    ours.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.encode(CORPUS) == ours.encode(CORPUS)
    assert_same(again, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"), exact_texts=exact_texts)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert_same(load_tokenizer(tmp_path / "theirs"), theirs, exact_texts=exact_texts)


def test_every_sentencepiece_kind_is_tested():
    tested = {class_name.removesuffix("Tokenizer") for class_name, *_ in LAYOUTS.values()} | {"XGLM", "Marian"}
    assert tested == {
        name for name, kind in KINDS.items() if kind.files not in (("vocab.txt",), ("vocab.json", "merges.txt"))
    }


def test_xglm_has_the_ids_of_its_checkpoints(layouts, tmp_path):
    """torch takes no sentencepiece model for XGLM, so it gets the vocabulary in the order that its checkpoints have."""
    (directory := tmp_path / "xglm").mkdir()
    shutil.copy(layouts["xlm_roberta"] / "sentencepiece.bpe.model", directory)
    write_json(directory / "config.json", {"model_type": "xglm"})
    ours = load_tokenizer(directory)
    model = read_sentencepiece(directory / "sentencepiece.bpe.model")
    first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    last = [(f"<madeupword{i}>", 0.0) for i in range(7)]
    vocab = [*first, *model.scores()[3:], *last]
    assert_same(ours, transformers.XGLMTokenizer(vocab=vocab, _spm_precompiled_charsmap=model.charsmap))
    ours.save(tmp_path / "ours")
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))


def encode_target(tokenizer, lines):
    """As torch does with text_target=..., which must not reach the next call."""
    return [tokenizer(text_target=line).input_ids for line in lines]


@pytest.mark.parametrize("name", ["mbart", "mbart50", "plbart_language"])
def test_languages_of_the_two_sides(name, layouts, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(layouts[name])
    pair = Tokenizers.load(layouts[name], layouts[name])
    assert pair.source.encode(CORPUS) == [theirs(line).input_ids for line in CORPUS]
    assert pair.target.encode(CORPUS) == encode_target(theirs, CORPUS)
    different = pair.source.encode("fox") != pair.target.encode("fox")
    assert different == (theirs.tgt_lang not in (None, theirs.src_lang))
    pair.save(tmp_path)
    again = Tokenizers.load(tmp_path, tmp_path)
    assert again.source.encode(CORPUS) == pair.source.encode(CORPUS)
    assert again.target.encode(CORPUS) == pair.target.encode(CORPUS)


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """Two models that share some pieces, and the ids of all of them in no order of either."""
    directory = tmp_path_factory.mktemp("marian")
    plain = dict(bos_id=-1, eos_id=1, unk_id=0)
    source = train(directory / "source.spm", vocab_size=120, **plain)
    target = train(directory / "target.spm", **plain, extra_lines=[CORPUS[2], CORPUS[15]])
    pieces = {p.text for path in (source, target) for p in read_sentencepiece(path).pieces if not p.is_control}
    tokens = ["</s>", "<unk>", *sorted(pieces - {"<unk>"}, key=lambda piece: piece[::-1]), ">>fra<<", "<pad>"]
    write_json(directory / "vocab.json", {token: i for i, token in enumerate(tokens)})
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer", "model_max_length": 512})
    return directory


def test_marian(marian, tmp_path):
    corpus = [*CORPUS, ">>fra<< The fox", ">>fra<<The fox"]
    theirs = transformers.AutoTokenizer.from_pretrained(marian)
    ours = Tokenizers.load(marian, marian)
    assert_same(ours.source, theirs, corpus, exact_texts=False)
    assert ours.target.encode(corpus) == encode_target(theirs, corpus)
    assert ours.target.encode("Привет") != ours.source.encode("Привет")
    assert ours.source.batch_decode(ours.target.encode(corpus)) == theirs.batch_decode(
        ours.target.encode(corpus), skip_special_tokens=True
    )
    ours.save(tmp_path)
    assert_same(
        load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path), corpus, exact_texts=False
    )
    again = Tokenizers.load(tmp_path, tmp_path)
    assert again.target.encode(corpus) == ours.target.encode(corpus)


def test_refused_models(layouts, marian, tmp_path):
    def directory(name, **files):
        (made := tmp_path / name).mkdir()
        for file, content in files.items():
            (made / file.replace("_", ".")).write_bytes(content)
        return made

    good = (layouts["t5"] / "spiece.model").read_bytes()
    with pytest.raises(ValueError, match=r"spiece.model: not a sentencepiece model; fetch"):
        load_tokenizer(directory("cut", spiece_model=good[:-7], config_json=b'{"model_type": "t5"}'))
    with pytest.raises(ValueError, match=r"spiece.model: not a sentencepiece model; fetch"):
        load_tokenizer(directory("text", spiece_model=b"version https://git-lfs", config_json=b'{"model_type": "t5"}'))
    with pytest.raises(ValueError, match="without pieces"):
        load_tokenizer(directory("empty", spiece_model=b"", config_json=b'{"model_type": "t5"}'))
    with pytest.raises(ValueError, match=r"unknown tokenizer kind .*name one of .*T5"):
        load_tokenizer(directory("kind", spiece_model=good))
    words = train(tmp_path / "word" / "spiece.model", model_type="word")
    write_json(words.parent / "config.json", {"model_type": "t5"})
    with pytest.raises(ValueError, match=r"of type 3 .word or char.; only unigram and BPE"):
        load_tokenizer(words.parent)
    half = shutil.copytree(marian, tmp_path / "half")
    (half / "target.spm").unlink()
    with pytest.raises(FileNotFoundError, match=r"no target.spm; a Marian tokenizer needs source.spm"):
        load_tokenizer(half)
    shutil.copy(marian / "source.spm", half / "target.spm")
    write_json(half / "vocab.json", {"</s>": 0, "<unk>": 1, "<pad>": 2})
    with pytest.raises(ValueError, match=r"vocab.json: has no id for .* pieces of source.spm, such as"):
        load_tokenizer(half)
    write_json(half / "vocab.json", {"</s>": 0, "<unk>": 2})
    with pytest.raises(ValueError, match="ids are not 0 to 1, each once"):
        load_tokenizer(half)
