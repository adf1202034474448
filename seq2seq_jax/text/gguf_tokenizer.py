"""Builds the tokenizer that the metadata of a GGUF file describe.

Source: `AutoTokenizer.from_pretrained(..., gguf_file=...)` of transformers 5, and llama-vocab.cpp of llama.cpp for what
`tokenizer.ggml.pre` means. llama.cpp decides where transformers has no rule of its own and splits as GPT-2 does:
"smollm" and others split digits from each other and from what stands before them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from seq2seq_jax.text.tokenizer_classes import QWEN2_WORDS
from seq2seq_jax.weights.gguf_files import GgufFile, read_gguf
from seq2seq_jax.weights.gguf_models import architecture

CONTROL, USER_DEFINED = 3, 4
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDING = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDING}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDING}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDING}"
)
# By `tokenizer.ggml.pre`: the words that are merged by themselves. None: those of GPT-2.
WORDS: dict[str, str | None] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "jais", "roberta-bpe", "trillion"), None),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "digits"),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo"), QWEN2_WORDS),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
# A word that is a token stays whole, even if no merges lead to it.
WHOLE_WORDS = {*("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "tekken"}


class GgufTokenizer(NamedTuple):
    """What a file holds, as in `tokenizer_files.TokenizerParts`."""

    backend: Tokenizer
    named: dict[str, str | None]
    settings: dict[str, Any]


def read_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Builds the tokenizer of a file.

    Raises:
      ValueError: a kind of tokenizer or of splitting that is not known; a file without a tokenizer.
    """
    file = read_gguf(path)
    metadata = {
        key.removeprefix("tokenizer.ggml."): v for key, v in file.metadata.items() if key.startswith("tokenizer.ggml.")
    }
    kind, tokens = metadata.get("model"), metadata.get("tokens")
    if not tokens:
        raise ValueError(f"{path} holds no tokenizer; give the directory of the original one")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise ValueError(
            f"{path}: a tokenizer of the kind {kind!r} is not read from GGUF; {' and '.join(makers)} are, others as a"
            " directory with tokenizer.json"
        )
    ids = {name: metadata.get(f"{key}_token_id") for name, key in NAMED.items()}
    if any(i is not None and not 0 <= i < len(tokens) for i in ids.values()):
        raise ValueError(
            f"{path}: a special token of {ids} is outside the {len(tokens)} tokens; convert the model again"
        )
    named = {name: None if i is None else tokens[i] for name, i in ids.items()}
    if architecture(file).startswith("gemma") and "<mask>" in tokens:  # which metadata have no field for
        named["mask_token"] = "<mask>"
    backend = makers[kind](file, metadata, named)
    _add_tokens(backend, metadata, named, _alphabet() if kind == "gpt2" else None)
    before = [named["bos_token"]] if named["bos_token"] and metadata.get("add_bos_token", kind == "llama") else []
    after = [named["eos_token"]] if named["eos_token"] and metadata.get("add_eos_token") else []
    _set_post_processor(backend, before, after)
    settings = {name: token for name, token in named.items() if token is not None}
    template = file.metadata.get("tokenizer.chat_template")
    return GgufTokenizer(backend, named, {**settings, **({"chat_template": template} if template else {})})


def _byte_level(file: GgufFile, metadata: dict[str, Any], named: dict[str, str | None]) -> Tokenizer:
    """Byte-level BPE."""
    pre = metadata.get("pre", "default")
    if pre not in WORDS:
        raise ValueError(
            f"{file.path}: tokenizer.ggml.pre {pre!r} is not known ({', '.join(WORDS)} are); give the directory of the"
            " original tokenizer, with tokenizer.json"
        )
    spelling = _byte_characters()
    alphabet = set(spelling)
    vocab = {}
    for i, token in enumerate(metadata["tokens"]):
        vocab[token if set(token) <= alphabet else "".join(spelling[byte] for byte in token.encode())] = i
    merges = [tuple(merge.split(" ")) for merge in metadata.get("merges", ())]
    backend = _make_tokenizer(file, lambda: models.BPE(vocab, merges, ignore_merges=pre in WHOLE_WORDS))
    words = WORDS[pre]
    if words is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        digits = words == "digits"
        first = (
            pre_tokenizers.Digits(individual_digits=True) if digits else pre_tokenizers.Split(Regex(words), "isolated")
        )
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=digits)
        backend.pre_tokenizer = pre_tokenizers.Sequence([first, second])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GgufFile, metadata: dict[str, Any], named: dict[str, str | None]) -> Tokenizer:
    """BPE of sentencepiece, whose merges follow from the vocabulary, the highest score first."""
    gemma, tokens = architecture(file).startswith("gemma"), metadata["tokens"]
    if gemma:  # runs of spaces are spelt out, and the order of merges is that of the ids
        tokens = ["\u2581" * len(t) if " " in t and not t.strip() else t for t in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = [-i for i in range(len(tokens))] if gemma else metadata["scores"]
    if "merges" in metadata:
        merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    else:
        merges = _merges(vocab, dict(zip(tokens, scores)))
    unk = {"unk_token": named["unk_token"] or "<unk>"} if gemma else {}
    backend = _make_tokenizer(file, lambda: models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, **unk))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        backend.normalizer = normalizers.Replace(" ", "\u2581")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        first = metadata.get("add_space_prefix", True)
        backend.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first" if first else "never", split=False)
        steps += [decoders.Strip(" ", 1, 0)] if first else []
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE vocabulary, which sentencepiece does not store: each way to make a piece of two others.

    Source: `generate_merges` of transformers 5. A piece of a higher score is merged earlier.
    """
    found = []
    for piece in vocab:
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(scores[piece], len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [merge[3:] for merge in found]


def _make_tokenizer(file: GgufFile, make: Any) -> Tokenizer:
    try:
        return Tokenizer(make())
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{file.path}: vocabulary refused ({error}); convert the model again") from error


def _add_tokens(
    backend: Tokenizer, metadata: dict[str, Any], named: dict[str, str | None], alphabet: set[str] | None
) -> None:
    """Adds the tokens that are never split: control tokens, which decoding leaves out, and user-defined ones."""
    vocab, added = backend.get_vocab(), {}
    for token, kind in zip(metadata["tokens"], metadata.get("token_type", ())):
        # In a byte-level vocabulary a control token of other characters is a mistake of the converter.
        if kind == CONTROL and (alphabet is None or set(token) <= alphabet):
            added[token] = AddedToken(token, normalized=False, special=True)
        elif kind == USER_DEFINED and token in vocab:
            added[token] = AddedToken(token, normalized=False, special=False)
    for token in filter(None, named.values()):
        added[token] = AddedToken(token, normalized=False, special=True)
    backend.add_tokens(list(added.values()))


def _set_post_processor(backend: Tokenizer, before: list[str], after: list[str]) -> None:
    if before or after:
        ids = [(token, backend.token_to_id(token)) for token in {*before, *after}]
        second = [f"{token}:1" for token in before], [f"{token}:1" for token in after]
        single = [*before, "$A", *after]
        backend.post_processor = processors.TemplateProcessing(single, [*single, *second[0], "$B:1", *second[1]], ids)


def _alphabet() -> set[str]:
    return set(pre_tokenizers.ByteLevel.alphabet())


def _byte_characters() -> list[str]:
    """The character that stands for each byte (`bytes_to_unicode` of GPT-2)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in shown else next(hidden) for byte in range(256)]
