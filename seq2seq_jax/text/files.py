"""Reads text files: JSON lines, CSV, TSV and Parquet by field, and plain text by line.

Only "\\n" ends a line (a "\\r" before it goes with it), so U+2028 and its like stay inside their texts; within the
quotes of CSV and TSV a line break belongs to the text. Files are UTF-8, with or without a byte order mark, and may be
compressed (.gz, .bz2, .xz, .zst; Parquet compresses by itself). Every value of CSV and TSV is text: 007 stays 007 and
NA stays NA. Fields that are not asked for may hold anything.

A dotted field ("translation.de") is looked up in nested objects, unless a field has just that name.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from seq2seq_jax.config.validation import first_line

# Each kind of file with fields, by its suffix, and each compression.
KINDS = (".jsonl", ".csv", ".tsv", ".parquet")
OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), BUFFER),
}
NAMED_KINDS = f"{', '.join(KINDS[:-1])} or .parquet file (all but .parquet also as {', '.join(OPENERS)})"
REMEDY = "give another field, or mend the data"

BUFFER = 2**20
BATCH = 1024  # rows of Parquet in memory at once
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BYTE_ORDER_MARK = "\ufeff".encode()
_MISSING = object()
_IN_UTF8 = "write the file in UTF-8 (iconv -f {} -t UTF-8, if that is its encoding)"

# Messages name only the type of a number, and Python refuses to read one of more than 4300 digits.
_JSON = json.JSONDecoder(parse_int=lambda digits: 0)
# The default limit of a cell is 131,072 characters; it can be set only for the whole process.
csv.field_size_limit(2**31 - 1)


class Place(NamedTuple):
    """Where a record begins: the offset of its first byte in the decompressed file, and its line, counted from 1.

    A Parquet file has no lines: both are the number of the row, counted from 0 and from 1.
    """

    position: int
    line: int


BEGIN = Place(0, 1)


class Record(NamedTuple):
    """The texts of the requested fields; of a plain text file, the line."""

    place: Place
    texts: tuple[str, ...]


def kind_of(path: str | Path) -> str:
    """The lower-case suffix that says how a file is read, without that of a compression; "" if there is none."""
    path = Path(path)
    return Path(path.stem if _compression(path) else path.name).suffix.lower()


def is_compressed(path: str | Path) -> bool:
    """Whether the file is decompressed while it is read, and so can only be read forward."""
    return bool(_compression(Path(path)))


def _compression(path: Path) -> str:
    return path.suffix.lower() if path.suffix.lower() in OPENERS else ""


def read_records(
    path: str | Path,
    fields: Sequence[str] = (),
    *,
    start: Place = BEGIN,
    remedy: str = REMEDY,
) -> Iterator[Record]:
    """Yields the records of a file; the memory that it takes does not grow with the file.

    Blank lines of JSON lines, CSV and TSV are no records.

    Args:
      fields: the fields that hold the texts in a file of `KINDS`; empty: each line of the file is a text.
      start: the place of an earlier record, to begin there.
      remedy: what to do about a missing field, for error messages.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file, the line (of a record its first) and the remedy.
    """
    path, kind = Path(path), kind_of(path)
    if kind in KINDS and not fields:
        raise ValueError(f"{path} has fields; say which one holds the texts")
    if kind == ".json" or (fields and kind not in KINDS):
        raise ValueError(f"{path} is no {NAMED_KINDS}; write one JSON object a line, or give its file that name")
    if kind == ".parquet":
        if is_compressed(path):
            raise ValueError(f"{path} is compressed Parquet, which is compressed within; decompress the file")
        yield from _parquet(path, fields, start, remedy)
        return
    with OPENERS[_compression(path)](path) if is_compressed(path) else path.open("rb", BUFFER) as file:
        lines = _Lines(path, file)
        if kind in _DELIMITERS:
            yield from _table(path, lines, fields, start, _DELIMITERS[kind], remedy)
            return
        if start.position:
            lines.skip_to(start)
        if kind == ".jsonl":
            yield from _json_lines(path, lines, fields, remedy)
        else:
            yield from (Record(place, (_unended(line),)) for place, line in lines.placed())


def text_lines(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of an open file, as `read_records` reads plain text; error messages call the file `name`."""
    return map(_unended, _Lines(name, file))


def _unended(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


class _Lines:
    """The decoded lines of a binary file, with their line ends; `place` is where the next line begins."""

    def __init__(self, name: str | Path, file: BinaryIO):
        self._name, self._file, self.place = name, file, BEGIN

    def skip_to(self, place: Place) -> None:
        """Skips to the beginning of a line."""
        if not is_compressed(self._name):
            self._file.seek(place.position)
        else:
            left = place.position - self.place.position
            while left > 0 and (passed := self._read(min(left, BUFFER))):
                left -= len(passed)
        self.place = place

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._read()
        if not raw:
            raise StopIteration
        place = self.place
        self.place = Place(place.position + len(raw), place.line + 1)
        if place.position == 0:
            if _is_utf16(raw):
                raise ValueError(f"{self._name}, line 1: not UTF-8 but UTF-16; {_IN_UTF8.format('UTF-16')}")
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._name}, line {place.line}: not UTF-8 ({error.reason} at byte {error.start});"
                f" {_IN_UTF8.format('LATIN1')}"
            ) from None

    def placed(self) -> Iterator[tuple[Place, str]]:
        """The lines, each with where it begins."""
        place = self.place
        for line in self:
            yield place, line
            place = self.place

    def _read(self, size: int | None = None) -> bytes:
        """A line, or `size` bytes, fewer at the end."""
        try:
            return self._file.readline() if size is None else self._file.read(size)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(
                f"{self._name}, line {self.place.line}: the archive is cut short or damaged ({first_line(error)});"
                " fetch or write it again"
            ) from error


def _is_utf16(raw: bytes) -> bool:
    """By its byte order mark, or by the zero bytes of two ASCII characters."""
    marked = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    return marked or (len(raw) >= 4 and (raw[0] == raw[2] == 0 != raw[1] or raw[1] == raw[3] == 0 != raw[0]))


def _json_lines(path: Path, lines: _Lines, fields: Sequence[str], remedy: str) -> Iterator[Record]:
    for place, line in lines.placed():
        if not line.strip(" \t\r\n"):
            continue
        where = f"{path}, line {place.line}"
        try:
            row = _JSON.decode(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise ValueError(f"{where}: no valid JSON ({reason}); write one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not a JSON object; write one object a line")
        yield Record(place, tuple(_text_of(row, field, where, remedy) for field in fields))


def _text_of(row: dict[str, Any], field: str, where: str, remedy: str) -> str:
    value = _look_up(row, field)
    if value is _MISSING:
        raise _no_field(where, field, row, remedy)
    if not isinstance(value, str):
        kind = "empty (null)" if value is None else type(value).__name__
        raise ValueError(f"{where}: field {field!r} is {kind}, not text; write a text in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):x}"
        raise ValueError(
            f"{where}: field {field!r} holds half a character, {half}; write its other half too, or leave it out"
        ) from None
    return value


def _look_up(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field; of a dotted one within nested objects, if no field has just that name."""
    if field in row:
        return row[field]
    outer, dot, inner = field.partition(".")
    nested = row.get(outer, _MISSING) if dot else _MISSING
    if isinstance(nested, dict):
        return _look_up(nested, inner)
    return None if nested is None else _MISSING


def _no_field(where: str, field: str, known: Mapping[str, Any], remedy: str) -> ValueError:
    outer, dot, _ = field.partition(".")
    nested = known.get(outer) if dot else None
    names = [f"{outer}.{name}" for name in nested] if isinstance(nested, dict) and nested else list(known)
    return ValueError(f"{where}: there is no field {field!r}, only {', '.join(map(repr, names))}; {remedy}")


def _table(
    path: Path, lines: _Lines, fields: Sequence[str], start: Place, delimiter: str, remedy: str
) -> Iterator[Record]:
    """CSV and TSV, the first line of which names the fields."""
    header = next((row for _, row in _rows(path, lines, delimiter) if row), None)
    if header is None:
        return
    for field in fields:
        if header.count(field) != 1:
            where = f"{path}, line {lines.place.line - 1}"
            if field not in header:
                raise _no_field(where, field, dict.fromkeys(header), remedy)
            raise ValueError(f"{where}: field {field!r} stands there {header.count(field)} times; rename the others")
    columns = [header.index(field) for field in fields]
    if start.position:
        lines.skip_to(start)
    for place, row in _rows(path, lines, delimiter):
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {place.line}: {_count(row)}, and the first line has {_count(header)}; write as many, and"
                f" in quotes what holds a {'tab' if delimiter == chr(9) else 'comma'}, a quote or a line break"
            )
        yield Record(place, tuple(row[column] for column in columns))


def _count(row: list[str]) -> str:
    return f"{len(row)} cell{'s' if len(row) != 1 else ''}"


def _rows(path: Path, lines: _Lines, delimiter: str) -> Iterator[tuple[Place, list[str]]]:
    """The rows from the next line on, each with where it begins; that of a blank line is empty."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        place = lines.place
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = first_line(error).partition(" - ")[0]
            if reason == "unexpected end of data":
                reason = "a quote that opens in this row is never closed"
            raise ValueError(
                f"{path}, line {place.line}: no valid CSV ({reason}); double the quotes inside quoted cells, and quote"
                " cells that hold line breaks"
            ) from None
        yield place, row


def _parquet(path: Path, fields: Sequence[str], start: Place, remedy: str) -> Iterator[Record]:
    path.stat()  # pyarrow's own message for a missing file is of many lines
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for field in fields:
                check_text_type(file.schema_arrow, field, str(path), remedy)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            first, row = 0, 0  # the first row group that is read, and its first row
            while first < len(sizes) and row + sizes[first] <= start.position:
                row, first = row + sizes[first], first + 1
            groups = list(range(first, len(sizes)))
            for batch in file.iter_batches(BATCH, row_groups=groups, columns=list(dict.fromkeys(fields))):
                columns = [_python_texts(column_of(batch, field), path, field, row) for field in fields]
                for number, texts in enumerate(zip(*columns), row):
                    if number >= start.position:
                        yield Record(Place(number, number + 1), texts)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({first_line(error)}); fetch or write it again") from error


def check_text_type(schema: pa.Schema, field: str, where: str, remedy: str) -> None:
    """Raises ValueError unless the schema has texts (of any of Arrow's types for them) under `field`."""
    known = {part.name: _nested(part.type) for part in schema}
    kind = _look_up(known, field)
    if kind is _MISSING:
        raise _no_field(where, field, known, remedy)
    values = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not isinstance(values, pa.DataType) or not any(of_text(values) for of_text in is_text):
        shown = f"an object of {', '.join(map(repr, kind))}" if isinstance(kind, dict) else kind
        raise ValueError(f"{where}: field {field!r} is {shown}, not text; {remedy}")


def _nested(kind: pa.DataType) -> Any:
    """A type; of objects, those of their fields."""
    return {part.name: _nested(part.type) for part in kind} if pa.types.is_struct(kind) else kind


def column_of(table: pa.RecordBatch | pa.Table, field: str) -> pa.Array | pa.ChunkedArray:
    """The column of a field, dotted or not, that `check_text_type` has found."""
    names = table.schema.names
    if field in names:
        return table.column(field)
    outer, _, inner = field.partition(".")
    column = table.column(outer)
    while inner not in (names := [part.name for part in column.type]):
        outer, _, inner = inner.partition(".")
        column = pa.compute.struct_field(column, names.index(outer))
    return pa.compute.struct_field(column, names.index(inner))


def _python_texts(column: pa.Array, path: Path, field: str, row: int) -> list[str]:
    texts = []
    for number, value in enumerate(column, row + 1):
        try:
            texts.append(value.as_py())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, example {number}: field {field!r} is not UTF-8 ({error.reason}); write the file again"
            ) from None
        if texts[-1] is None:
            raise no_text(str(path), number, field)
    return texts


def no_text(where: str, number: int, field: str) -> ValueError:
    """The error for a null in a column; `number` counts the examples from 1."""
    return ValueError(f"{where}, example {number}: field {field!r} holds no text; fill it, or leave the example out")
