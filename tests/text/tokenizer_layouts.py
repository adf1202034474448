"""Directories of tokenizer files in every layout, and the comparison of a tokenizer with torch's."""

import json

import numpy as np
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello world, don't you think it's  fine ? I'm sure we've said so ; they're here !",
    "élève naïve Ångström coöperate İstanbul straße e\u0301",
    "日本語のテキスト 中文 한국어 mixed日本text",
    "emoji 😀👍🏽 👩‍👩‍👧 ok",
    "control \x00\x07\x1b\u200b\ufffd\u00ad chars",
    "",
    "   ",
    "\n\t tabs\tand\nnewlines\r\n",
    " leading and trailing ",
    "[SEP] a [CLS][MASK] b[PAD] [sep] [UNK]",
    "<s> a </s>b <mask> c <pad><unk> <|endoftext|> x<|endoftext|>",
    "word " * 300,
    "a" * 500,
    "ab12_34-56.7,8%$#@!(){}[]<>|\\/~`^&*+=",
    "Привет мир नमस्ते שלום مرحبا",
    "<new> Added <NEW> tokens<new>tail <extra_0> end",
]
# Not the whole corpus, so that some of it stays unknown to the vocabularies.
TRAINING = [CORPUS[0], CORPUS[1], CORPUS[2], CORPUS[9], CORPUS[12]] * 3

BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BART_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **flags}


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def write_word_piece(directory, special=BERT_TOKENS, **files):
    """vocab.txt of a trained WordPiece, and `files` (name without .json -> content)."""
    directory.mkdir(parents=True)
    backend = Tokenizer(models.WordPiece(unk_token=special[1]))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = sorted(set("".join(TRAINING)) | set("日本。eao"))
    backend.train_from_iterator(
        [*TRAINING, *(line.lower() for line in TRAINING)],
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet),
    )
    vocab = backend.get_vocab()
    (directory / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")
    for name, content in files.items():
        write_json(directory / f"{name}.json", content)
    return directory


def write_byte_pairs(directory, special, **files):
    """vocab.json and merges.txt of a trained byte BPE, and `files`."""
    directory.mkdir(parents=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.model.save(str(directory))
    for name, content in files.items():
        write_json(directory / f"{name}.json", content)
    return directory


def write_word_level(directory):
    """A tokenizer of no known class, with truncation and padding in its tokenizer.json."""
    directory.mkdir(parents=True)
    words = ["<unk>", "<p>", "The", "brown", "fox", "world,", "it's", "n't", "'", ".", "?", "we've", "<e>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_tokens(["<e>"])  # not special, until the config names it as eos
    backend.enable_truncation(4, direction="left")
    backend.enable_padding(length=9, pad_id=1, pad_token="<p>")
    backend.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<e>", "clean_up_tokenization_spaces": True},
    )
    return directory


def write_filed(directory, source, post_processor, **changes):
    """A directory with nothing but a tokenizer.json of older make: merges as strings, truncation, added tokens."""
    backend = tokenizers.ByteLevelBPETokenizer(
        str(source / "vocab.json"), str(source / "merges.txt"), add_prefix_space=False
    )
    backend.add_special_tokens(["<s>", "</s>", tokenizers.AddedToken("<mask>", lstrip=True)])
    backend.add_tokens(["<new>"])
    backend.enable_truncation(6)
    backend._tokenizer.post_processor = post_processor
    value = json.loads(backend.to_str())
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    directory.mkdir()
    write_json(directory / "tokenizer.json", value)
    for name, content in changes.items():
        write_json(directory / f"{name}.json", content)
    return directory


def assert_same(ours, theirs, corpus=CORPUS, exact_texts=True):
    """The same special tokens, ids and texts as a torch tokenizer.

    `exact_texts`: also of texts with special tokens left in them, and of ids that no text has.
    """
    for name in ("pad", "bos", "eos", "cls", "sep", "unk", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    assert ours.vocab_size == len(theirs)
    assert ours.max_length == (theirs.model_max_length if theirs.model_max_length < 1e20 else None)
    for special in (True, False):
        want = [theirs(line, add_special_tokens=special).input_ids for line in corpus]
        got = ours.encode_batch(corpus, add_special_tokens=special)
        assert got == want
        for n in (2, 3, 7, 50):
            want = theirs(corpus, add_special_tokens=special, truncation=True, max_length=n).input_ids
            assert ours.encode_batch(corpus, add_special_tokens=special, max_length=n) == want, n
    generator = np.random.default_rng(0)
    rows = [*ours.encode_batch(corpus), *generator.integers(0, ours.vocab_size, (20 * exact_texts, 15)).tolist()]
    for skip in (True, False)[: 1 + exact_texts]:
        want = [theirs.decode(row, skip_special_tokens=skip) for row in rows]
        assert ours.batch_decode(rows, skip_special_tokens=skip) == want
    assert ours.decode(rows[0]) == theirs.decode(rows[0], skip_special_tokens=True)
