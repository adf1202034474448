"""Texts of a file, a window of them at a time: any size fits."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from seq2seq_jax.text.files import Place, Record, is_compressed, kind_of, read_records


@dataclass
class _Cursor:
    """Where reading stands: the window that comes next, and the records from there on."""

    window: int
    records: Iterator[Record]


@dataclass(frozen=True)
class Lines:
    """The texts of a file as `text.files` reads it: one a line, or those under `field` of its records.

    Line n of a .txt or .jsonl file is output n: a blank line is an empty text in the one, and in the other an error,
    but at the end, where it does not count. Of CSV, TSV and Parquet it is record n, whatever its lines; blank lines of
    CSV and TSV do not count.

    Attributes:
      field: of the records; None: the line is the text.
      window: how many texts are read at once.
      count: how many texts there are.
      offsets: where each window begins.
      fingerprint: a hash of the file's bytes.
    """

    path: Path
    field: str | None
    window: int
    count: int
    offsets: tuple[Place, ...]
    fingerprint: str
    _kept: list[_Cursor] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

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
        count, offsets = 0, []
        for place, _ in read_records(path, _fields(field)):
            if kind_of(path) == ".jsonl" and place.line != count + 1:
                raise ValueError(
                    f"{path}, line {count + 1}: blank, so that outputs would not stand in the lines of their inputs;"
                    " take blank lines out"
                )
            if count % window == 0:
                offsets.append(place)
            count += 1
        with path.open("rb") as file:
            fingerprint = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return cls(path, field, window, count, tuple(offsets), fingerprint)

    def size(self, number: int) -> int:
        """How many texts window `number` has; the last one may be short."""
        return min(self.window, self.count - number * self.window)

    def read(self, number: int) -> list[str]:
        """The texts of window `number`, counted from 0. A compressed file is quickest read in rising order."""
        cursor = self._cursor(number)
        records = itertools.islice(cursor.records, self.size(number))
        cursor.window = number + 1
        return [texts[0] for _, texts in records]

    def _cursor(self, number: int) -> _Cursor:
        """One that stands before window `number`. Only in a compressed file is it kept, since only there it is dear to
        begin anew: a window is found by decompressing all that comes before it."""
        if not is_compressed(self.path):
            return _Cursor(number, read_records(self.path, _fields(self.field), start=self.offsets[number]))
        if not self._kept or self._kept[0].window > number:
            self._kept[:] = [_Cursor(0, read_records(self.path, _fields(self.field)))]
        cursor = self._kept[0]
        skipped = (number - cursor.window) * self.window
        next(itertools.islice(cursor.records, skipped, skipped), None)
        return cursor


def _fields(field: str | None) -> tuple[str, ...]:
    return () if field is None else (field,)


def windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts in lists of `size`; the last one may be short."""
    texts = iter(texts)
    while window := list(itertools.islice(texts, size)):
        yield window


def one_line(text: str) -> str:
    """The text with a space for each line break, so that any reader finds one line."""
    return " ".join(text.splitlines())
