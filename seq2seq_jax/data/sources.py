"""Pairs of texts, as a `datasets.Dataset`: from files, from the hub, and the ones that the package ships."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.types

from seq2seq_jax.config import nearest

SHIPPED = {f"debian-synopsis:{split}": f"synopsis.{split}.jsonl.xz" for split in ("train", "validation")}
BUILDERS = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
OPENERS = {".gz": gzip.open, ".xz": lzma.open}
REMEDY = "set data.source_field and data.target_field, or mend the data"
KINDS = ".jsonl, .csv or .parquet file (.jsonl and .csv also as .gz or .xz)"


def load_pairs(
    name: str | Path, *, source_field: str, target_field: str, limit: int | None = None, subset: str | None = None
) -> datasets.Dataset:
    """The first `limit` examples, as a dataset of the text columns "source" and "target".

    Args:
      name: a .jsonl, .csv or .parquet file (the first two also as .gz or .xz); a shipped set ("debian-synopsis:train",
        "debian-synopsis:validation"); a directory or hub id with a split ("owner/name:train").
      source_field, target_field: the columns.
      subset: which configuration of a hub data set.

    Raises:
      FileNotFoundError, ValueError: naming the file, where it can be told the line, and the remedy.
    """
    name = str(name)
    if name in SHIPPED:
        path = Path(str(importlib.resources.files("seq2seq_jax.data") / "pairs" / SHIPPED[name]))
    else:
        path = Path(name).expanduser()
    fields = (source_field, target_field)
    found = _read_file(path, fields) if path.is_file() else _read_split(name, subset)
    for field in fields:
        if field not in found.column_names:
            _check_lines(path, fields)
            raise ValueError(
                f"{name}: there is no field {field!r}, only {', '.join(map(repr, found.column_names))}; {REMEDY}"
            )
    found = found.select(range(min(limit, len(found)))) if limit is not None else found
    if not len(found):
        raise ValueError(f"{name} holds no examples; give at least one")
    for field in fields:
        _check_texts(found, name, path, field, fields)
    if source_field == target_field:
        return datasets.Dataset.from_dict({"source": found[source_field][:], "target": found[source_field][:]})
    renamed = {source_field: "source", target_field: "target"}
    return found.select_columns(list(fields)).rename_columns({old: new for old, new in renamed.items() if old != new})


def _suffix(path: Path) -> str:
    return path.suffixes[-2] if path.suffix in OPENERS and len(path.suffixes) > 1 else path.suffix


def _read_file(path: Path, fields: tuple[str, str]) -> datasets.Dataset:
    kind = BUILDERS.get(_suffix(path))
    if kind is None or (kind == "parquet" and path.suffix in OPENERS):
        raise ValueError(f"{path} is no {KINDS}; write one JSON object a line, or give its file that name")
    # The text NA is a text.
    options = {"keep_default_na": False} if kind == "csv" else {}
    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train", **options)
    except Exception as error:  # the builders raise whatever their parsers do
        _check_lines(path, fields)
        reason = _reason(error.__cause__ or error)
        if path.stat().st_size == 0 or "no data" in reason:
            raise ValueError(f"{path} holds no examples; give at least one") from error
        raise ValueError(f"{path} cannot be read as {kind} ({reason}); write the file again") from error


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_split(name: str, subset: str | None) -> datasets.Dataset:
    repository, _, split = name.partition(":")
    ours = {shipped.partition(":")[0] for shipped in SHIPPED}
    if not split or repository in ours or Path(repository).suffix in {*BUILDERS, *OPENERS}:
        shipped = nearest(name, SHIPPED)
        raise FileNotFoundError(
            f"there is no data file {name!r}; give an existing {KINDS}, a directory or hub id with its split"
            f" ('owner/name:train'), or a shipped set: {shipped}"
        )
    try:
        return datasets.load_dataset(repository, subset, split=split)
    except Exception as error:  # network, hub and builders raise many kinds
        raise FileNotFoundError(
            f"there is no split {split!r} of a data set {repository!r} to be had ({_reason(error)}); give a directory"
            " or hub id"
            f" with one of its splits, or a shipped set: {nearest(name, SHIPPED)}"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a .jsonl file that hold something, with their numbers."""
    with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _check_lines(path: Path, fields: tuple[str, str]) -> None:
    """Names the first line of a .jsonl file that is no JSON object with texts under `fields`, if there is one."""
    if not path.is_file() or BUILDERS.get(_suffix(path)) != "json":
        return
    number = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: no valid JSON ({error.msg}); write one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not a JSON object; write one object a line")
        for field in fields:
            if field not in row:
                raise ValueError(f"{where}: there is no field {field!r}, only {', '.join(map(repr, row))}; {REMEDY}")
            if not isinstance(row[field], str):
                kind = "empty (null)" if row[field] is None else type(row[field]).__name__
                raise ValueError(f"{where}: field {field!r} is {kind}, not text; write a text in quotes")
    if number == 0:
        raise ValueError(f"{path} holds no examples; write one JSON object a line")


def _check_texts(found: datasets.Dataset, name: str, path: Path, field: str, fields: tuple[str, str]) -> None:
    """Every row has a text under `field`."""
    column = found.with_format("arrow")[:].column(field)
    of_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    if of_text and not column.null_count:
        return
    _check_lines(path, fields)
    if not of_text:
        raise ValueError(f"{name}: field {field!r} is {column.type}, not text; {REMEDY}")
    row = next(i for i, value in enumerate(column) if not value.is_valid)
    raise ValueError(f"{name}, example {row + 1}: field {field!r} holds no text; fill it, or leave the example out")
