"""Loads pairs of texts as a `datasets.Dataset`: from files, from the hub, and the shipped sets."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from seq2seq_jax.config import nearest
from seq2seq_jax.config.validation import first_line
from seq2seq_jax.text import files as text_files
from seq2seq_jax.text.files import KINDS, NAMED_KINDS, OPENERS, Record, kind_of, read_records

SHIPPED = {f"debian-synopsis:{split}": f"synopsis.{split}.jsonl.xz" for split in ("train", "validation")}
REMEDY = "set data.source_field and data.target_field, or mend the data"
COLUMNS = ("source", "target")
# Record batches of the cache have at most so many examples, and fewer where these reach so many characters.
ROWS, CHARACTERS = 1000, 2**24
# A part of the cache's key: raise it when the texts that a file gives change.
CACHE_VERSION = 1


def load_pairs(
    name: str | Path, *, source_field: str, target_field: str, limit: int | None = None, subset: str | None = None
) -> datasets.Dataset:
    """The first `limit` examples, as a memory-mapped dataset with the text columns "source" and "target".

    Args:
      name: a .jsonl, .csv, .tsv or .parquet file (all but Parquet also as .gz, .bz2, .xz or .zst; see
        `text.files`); a shipped set ("debian-synopsis:train", "debian-synopsis:validation"); a directory or hub id
        with a split ("owner/name:train").
      source_field, target_field: the columns; within objects as "translation.de".
      subset: which configuration of a hub data set.

    Raises:
      FileNotFoundError, ValueError: naming the file, if possible the line, and the remedy.
    """
    name = str(name)
    if name in SHIPPED:
        path = Path(str(importlib.resources.files("seq2seq_jax.data") / "pairs" / SHIPPED[name]))
    else:
        path = Path(name).expanduser()
    fields = (source_field, target_field)
    pairs = _read_files([path], fields) if path.is_file() else _read_split(name, subset, fields)
    if not len(pairs):
        raise ValueError(f"{name} holds no examples; give at least one")
    return pairs.select(range(min(limit, len(pairs)))) if limit is not None else pairs


def _read_files(paths: Sequence[Path], fields: tuple[str, str]) -> datasets.Dataset:
    """The pairs of files. They are read once and then come from the cache of `datasets`, until a file changes."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.blake2b(repr((states, fields, CACHE_VERSION)).encode(), digest_size=16).hexdigest()
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "seq2seq_jax" / key / "pairs.arrow"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=cached.parent, suffix=".unfinished")
        os.close(handle)
        try:
            _write(unfinished, (record for path in paths for record in read_records(path, fields, remedy=REMEDY)))
            os.replace(unfinished, cached)  # atomic: another process that writes it writes the same
        finally:
            Path(unfinished).unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(cached))


def _write(path: str, records: Iterable[Record]) -> None:
    """Writes records of two texts as an Arrow stream, in small record batches."""
    schema = pa.schema([(column, pa.large_string()) for column in COLUMNS])
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        rows, characters = [], 0
        for record in records:
            rows.append(record.texts)
            characters += sum(map(len, record.texts))
            if len(rows) == ROWS or characters >= CHARACTERS:
                stream.write_batch(_batch(rows, schema))
                rows, characters = [], 0
        if rows:
            stream.write_batch(_batch(rows, schema))


def _batch(rows: list[tuple[str, ...]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array(texts, pa.large_string()) for texts in zip(*rows)], schema=schema)


def _read_split(name: str, subset: str | None, fields: tuple[str, str]) -> datasets.Dataset:
    repository, _, split = name.partition(":")
    ours = {shipped.partition(":")[0] for shipped in SHIPPED}
    if not split or repository in ours or Path(repository).suffix.lower() in {*KINDS, *OPENERS}:
        shipped = nearest(name, SHIPPED)
        raise FileNotFoundError(
            f"there is no data file {name!r}; give an existing {NAMED_KINDS}, a directory or hub id with its split"
            f" ('owner/name:train'), or a shipped set: {shipped}"
        )
    try:
        files = _files_of_split(repository, subset, split)
        dataset = datasets.load_dataset(repository, subset, split=split) if files is None else None
    except Exception as error:  # network, hub and builders raise many kinds
        raise FileNotFoundError(
            f"the split {split!r} of a data set {repository!r} cannot be loaded ({first_line(error)}); give a"
            f" directory or hub id with one of its splits, or a shipped set: {nearest(name, SHIPPED)}"
        ) from error
    return _select(dataset, name, fields) if files is None else _read_files(files, fields)


def _files_of_split(repository: str, subset: str | None, split: str) -> list[Path] | None:
    """The files of a split, if `read_records` reads them: those of a directory, and CSV and TSV files of the hub, since
    `datasets` would parse texts that look like numbers as numbers. None: `datasets` reads the split."""
    builder = datasets.load_dataset_builder(repository, subset)
    files = (builder.config.data_files or {}).get(split)
    if not files or any(kind_of(file) not in KINDS for file in files):
        return None
    if not Path(repository).is_dir():
        if any(kind_of(file) not in (".csv", ".tsv") for file in files):
            return None
        files = datasets.DownloadManager().download(list(files))
    return [Path(file) for file in files]


def _select(dataset: datasets.Dataset, name: str, fields: tuple[str, str]) -> datasets.Dataset:
    """The columns of two fields, which must be texts without nulls."""
    for field in fields:
        text_files.check_text_type(dataset.features.arrow_schema, field, name, REMEDY)
    if not set(fields) <= set(dataset.column_names):
        dataset = dataset.flatten()  # objects become columns with dotted names
    dataset = dataset.select_columns(list(dict.fromkeys(fields)))
    table = dataset.with_format("arrow")[:]
    for field in fields:
        column = table.column(field)
        if column.null_count:
            number = next(i for i, value in enumerate(column, 1) if not value.is_valid)
            raise text_files.no_text(name, number, field)
    if fields[0] == fields[1]:
        return datasets.Dataset.from_dict(dict.fromkeys(COLUMNS, dataset[fields[0]][:]))
    return dataset.rename_columns({old: new for old, new in zip(fields, COLUMNS) if old != new})
