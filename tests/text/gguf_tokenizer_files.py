"""GGUF files with tokenizers trained here."""

import io

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.text.tokenizer_layouts import TRAINING

pytest.importorskip("gguf")

from tests.weights.gguf_writing import write_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEXTS = [
    "don't you'll WE'RE I'm she'd it'S",
    "1234567890 3.14159, 2026-11-30 a1b2",
    "a  1 and    42",
    "  two   spaces\tand\ttabs\n\n\nnewlines \r\n end  ",
    "emoji 😀👩‍👩‍👧 🇫🇷 ½Ⅷ٣ \u00a0\u2003x",
    "camelCase HTTPServer ÀÉ naïveTEXT/path/to_file.py",
    "<|start|>user\nHi<|end|>\n<tool> <s>a</s> <bos><eos> <pad>",
]


def byte_pairs(path, pre):
    """Byte-level BPE with control tokens and one user-defined token; trained on whole lines, so that merges reach
    over what the splitting rules cut."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=["<|start|>", "<|end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    numbers = [
        part for n in range(9, 400, 13) for part in (f"{n}", f"{n}{n}", f"   {n}", f"x{n}y", "'S", "'Re", "cAM", "   ")
    ]
    backend.train_from_iterator([*TRAINING, *TEXTS[:-1], *numbers], trainer)
    vocab = backend.get_vocab()
    tokens = [*sorted(vocab, key=vocab.get), "<tool>"]
    types = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 4) + [USER_DEFINED]
    merges = _merges(backend)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 1}
    return write_tokenizer(path, "gpt2", tokens, types=types, merges=merges, pre=pre, add_bos_token=False, **ids)


def _merges(backend):
    import json

    pairs = json.loads(backend.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def sentence_pieces(path, arch, **flags):
    """BPE of sentencepiece with bytes for what it does not know; and the library's own model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    gemma, trained = arch.startswith("gemma"), io.BytesIO()
    names = dict(bos_piece="<bos>", eos_piece="<eos>") if gemma else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TRAINING, *TEXTS[:3]]),
        model_writer=trained,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=340,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=not gemma,
        user_defined_symbols=["<tool>", "\n\n"],
        control_symbols=["<mask>"],
        pad_id=3,
        minloglevel=2,
        num_threads=1,
        **names,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    count = model.get_piece_size()

    def kind(i):
        if model.is_unknown(i):
            return UNKNOWN
        if model.is_control(i):
            return CONTROL
        return BYTE if model.is_byte(i) else USER_DEFINED if model.id_to_piece(i) in ("<tool>", "\n\n") else NORMAL

    tokens = [model.id_to_piece(i) for i in range(count)]
    scores = [model.get_score(i) for i in range(count)]
    ids = {f"{name}_token_id": i for name, i in zip(("unknown", "bos", "eos", "padding"), range(4))}
    if gemma:
        flags = {"add_space_prefix": False, **flags}
    types = [kind(i) for i in range(count)]
    write_tokenizer(path, "llama", tokens, scores=scores, types=types, arch=arch, **ids, **flags)
    return path, model
