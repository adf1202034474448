"""Reads the `.model` files of sentencepiece, without the sentencepiece library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

UNIGRAM, BPE = "Unigram", "BPE"
_MODEL_TYPES = {1: UNIGRAM, 2: BPE}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type; 5 is unused, 6 a byte


class Piece(NamedTuple):
    """One piece of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    type: int

    @property
    def is_control(self) -> bool:
        """A token that no text can hold, such as </s>."""
        return self.type == _CONTROL

    @property
    def is_unknown(self) -> bool:
        """The token that stands for what the model does not know."""
        return self.type == _UNKNOWN

    @property
    def is_user_defined(self) -> bool:
        """A symbol that is never split."""
        return self.type == _USER_DEFINED


class SentencePieceModel(NamedTuple):
    """What a `.model` file holds, as far as tokenizers need it.

    Attributes:
      pieces: the vocabulary in the order of its ids.
      algorithm: "Unigram" or "BPE".
      unk_id: the id of the unknown token.
      byte_fallback: whether unknown characters become bytes.
      charsmap: the compiled normalization rules; b"" for none.
      add_dummy_prefix: whether a text is encoded as if a space stood in front.
      remove_extra_whitespaces: whether runs of spaces count as one, and those at the ends as none.
    """

    pieces: list[Piece]
    algorithm: str = UNIGRAM
    unk_id: int = 0
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    def scores(self) -> list[tuple[str, float]]:
        """Piece and score, as the file lists them."""
        return [(piece.text, piece.score) for piece in self.pieces]

    def search_scores(self) -> list[tuple[str, float]]:
        """Piece and score as sentencepiece's unigram search uses them: a user-defined symbol beats every spelling.

        Source: `Model::PopulateNodes` of sentencepiece's unigram_model.cc.
        """
        best = max((piece.score for piece in self.pieces if piece.type == _NORMAL), default=0.0)
        return [(p.text, len(p.text) * best - 0.1 if p.is_user_defined else p.score) for p in self.pieces]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a `.model` file; source: `ModelProto` of sentencepiece's sentencepiece_model.proto.

    Raises:
      ValueError: not such a file, or of an algorithm other than unigram and BPE.
    """
    try:
        pieces, trainer, normalizer = [], {}, {}
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                pieces.append(Piece(piece[1].decode("utf-8"), score, piece.get(3, _NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path}: not a sentencepiece model; fetch the file again") from error
    if not pieces:
        raise ValueError(f"{path}: a sentencepiece model without pieces; fetch the file again")
    algorithm = trainer.get(3, 1)
    if algorithm not in _MODEL_TYPES:
        raise ValueError(
            f"{path}: a sentencepiece model of type {algorithm} (word or char); only unigram and BPE models are read, "
            "so save the tokenizer with tokenizer.json"
        )
    return SentencePieceModel(
        pieces=pieces,
        algorithm=_MODEL_TYPES[algorithm],
        unk_id=trainer.get(40, 0),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def merges(vocab: dict[str, int], scores: dict[str, float] | None = None) -> list[tuple[str, str]]:
    """The merges of a BPE vocabulary, which sentencepiece does not store: each way to make a piece of two others.

    Source: `generate_merges` of transformers 5. A piece of a lower id is merged earlier; with `scores`, a better one.
    """
    found = []
    for piece, index in vocab.items():
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        rank = index if scores is None else scores[piece]
        found += [(rank, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=scores is not None)
    return [merge[3:] for merge in found]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number and value (an int, or the bytes of anything longer)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            if wire == 2:
                size, at = _varint(data, at)
            else:
                size = {1: 8, 5: 4}[wire]
            if at + size > len(data):
                raise ValueError("cut off")
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
