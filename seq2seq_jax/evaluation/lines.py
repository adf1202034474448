"""Texts of a file, a window of lines at a time: any size fits."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Lines:
    """A file of texts, one a line, or one JSON object a line with the text under `field`.

    Attributes:
      field: the objects' field; None: the line is the text.
      window: how many lines are read at once.
      count: how many lines there are.
      offsets: where each window begins, in bytes.
      fingerprint: a hash of the file's content.
    """

    path: Path
    field: str | None
    window: int
    count: int
    offsets: tuple[int, ...]
    fingerprint: str

    @classmethod
    def scan(cls, path: str | Path, *, window: int, field: str | None = None) -> Lines:
        """Reads the file once, so that a bad line is known before anything is decoded.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: naming the file, the line and the remedy.
        """
        path = Path(path)
        if window < 1:
            raise ValueError(f"window is {window}; give a whole number of lines from 1 up")
        count, position, offsets = 0, 0, []
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            for line in file:
                if count % window == 0:
                    offsets.append(position)
                count, position = count + 1, position + len(line)
                digest.update(line)
                _text(line, field, path, count)
        return cls(path, field, window, count, tuple(offsets), digest.hexdigest())

    def size(self, number: int) -> int:
        """How many lines window `number` has; the last one may be short."""
        return min(self.window, self.count - number * self.window)

    def read(self, number: int) -> list[str]:
        """The texts of window `number`, counted from 0."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[number])
            lines = itertools.islice(file, self.size(number))
            begin = number * self.window + 1
            return [_text(line, self.field, self.path, i) for i, line in enumerate(lines, begin)]


def windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts in lists of `size`; the last one may be short."""
    texts = iter(texts)
    while window := list(itertools.islice(texts, size)):
        yield window


def one_line(text: str) -> str:
    """The text with a space for each line break, so that any reader finds one line."""
    return " ".join(text.splitlines())


def _text(line: bytes, field: str | None, path: Path, number: int) -> str:
    where = f"{path}, line {number}"
    try:
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 ({error.reason} at byte {error.start}); write the file in UTF-8"
        ) from None
    if field is None:
        return text
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON ({error.msg}); write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        found = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
            f"{where}: no text under {field!r}, only {found}; give another field, or write a text in quotes there"
        )
    return row[field]
