"""What the tokens of a vocabulary spell, as tables made on the host."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

# A token is spelled behind this, since decoders treat a text's first token in ways of their own.
_BEFORE = "abcdef"
_cache: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def once(tokenizer: Any, what: Any, make: Callable[[], Any]) -> Any:
    """`make()`, called once for a tokenizer, its size and a name of the thing; kept while the tokenizer lives."""
    key = what, backend_of(tokenizer).get_vocab_size()  # transformers' tokenizers can grow
    made = _cache.setdefault(tokenizer, {})
    if key not in made:
        made[key] = make()
    return made[key]


def token_texts(tokenizer: Any) -> list[bytes]:
    """The text of each token id within a longer text, UTF-8; tokens of bytes may hold parts of a character.

    Blanks that a mark such as ▁ or Ġ stands for, or that the decoder puts between tokens, are part of it. Ids that are
    no tokens have none. As torch's StopStringCriteria.clean_tokenizer_vocab.

    Args:
      tokenizer: see `backend_of`.
    """
    return once(tokenizer, "texts", lambda: _texts(backend_of(tokenizer)))


def backend_of(tokenizer: Any) -> Any:
    """The tokenizers.Tokenizer of a `Tokenizer` (`backend`) or of a fast tokenizer of transformers."""
    if getattr(tokenizer, "is_fast", False):
        return tokenizer.backend_tokenizer
    backend = getattr(tokenizer, "backend", None)
    if not hasattr(backend, "get_vocab"):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; give what load_tokenizer returns, or a fast tokenizer of"
            " transformers"
        )
    return backend


def _texts(backend: Any) -> list[bytes]:
    vocabulary, kinds = backend.get_vocab(with_added_tokens=True), _decoder_kinds(backend)
    texts = [b""] * (1 + max(vocabulary.values()))
    byte_of = _byte_of() if "ByteLevel" in kinds and "ByteFallback" not in kinds else {}
    for token, id in vocabulary.items():
        if byte_of and all(c in byte_of for c in token):
            texts[id] = bytes(byte_of[c] for c in token)
        elif "ByteFallback" in kinds and _is_byte(token):
            texts[id] = bytes([int(token[3:5], 16)])
        elif backend.decoder is None:
            texts[id] = f" {token}".encode()
        else:
            texts[id] = backend.decoder.decode([_BEFORE, token]).partition(_BEFORE)[2].encode()
    return texts


def _decoder_kinds(backend: Any) -> set[str]:
    """The types of all parts of a tokenizer's decoder."""

    def kinds(part: Any):
        if isinstance(part, dict):
            yield part.get("type")
            part = list(part.values())
        if isinstance(part, list):
            for item in part:
                yield from kinds(item)

    return set() if backend.decoder is None else set(kinds(json.loads(backend.decoder.__getstate__())))


def _byte_of() -> dict[str, int]:
    """The bytes that the characters of a byte-level vocabulary stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _is_byte(token: str) -> bool:
    digits = token[3:5]
    return (
        len(token) == 6
        and token[:3] == "<0x"
        and token[5] == ">"
        and all(c in "0123456789abcdefABCDEF" for c in digits)
    )


def letters(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of each text, uint8 [texts, longest], zeros behind, and how many they are, int32 [texts]."""
    lengths = np.array([len(text) for text in texts], np.int32)
    table = np.zeros((len(texts), max(1, lengths.max(initial=0))), np.uint8)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(texts), np.uint8)
    return table, lengths


def word_pieces(tokenizer: Any) -> tuple[list[bytes], np.ndarray]:
    """The text of each token without blanks, and whether it starts a word, bool [tokens].

    WordPiece: all but pieces with the prefix (##) start one. Otherwise: what begins with a blank, and special tokens,
    which hold no text, do.
    """
    backend = backend_of(tokenizer)
    if type(backend.model).__name__ == "WordPiece":
        prefix, texts = backend.model.continuing_subword_prefix, [b""] * len(token_texts(tokenizer))
        starts = np.ones(len(texts), bool)
        for token, id in backend.get_vocab(with_added_tokens=True).items():
            starts[id] = not token.startswith(prefix)
            texts[id] = token.removeprefix(prefix).encode()
        return texts, starts
    special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    texts = [b"" if id in special else text for id, text in enumerate(token_texts(tokenizer))]
    starts = np.array([id in special or text[:1].isspace() for id, text in enumerate(texts)])
    return [text.strip() for text in texts], starts
