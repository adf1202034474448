"""Pairs of texts: from files, and the ones that the package ships."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import lzma
from pathlib import Path
from typing import NamedTuple

from seq2seq_jax.config import nearest

SHIPPED = {f"debian-synopsis:{split}": f"synopsis.{split}.jsonl.xz" for split in ("train", "validation")}
OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".jsonl": open}


class Pair(NamedTuple):
    """One example."""

    source: str
    target: str


def read_pairs(
    path_or_name: str | Path, *, source_field: str, target_field: str, limit: int | None = None
) -> list[Pair]:
    """The first `limit` pairs of a .jsonl, .jsonl.gz or .jsonl.xz file, or of a shipped set.

    Args:
      path_or_name: a file, or "debian-synopsis:train" or "debian-synopsis:validation".
      source_field, target_field: the fields of each line's JSON object that hold the texts.

    Raises:
      FileNotFoundError, ValueError: naming the file, the line and the remedy.
    """
    name = str(path_or_name)
    if name in SHIPPED:
        path = Path(str(importlib.resources.files("seq2seq_jax.data") / "pairs" / SHIPPED[name]))
    else:
        path = Path(name)
        if not path.is_file():
            shipped = nearest(name, SHIPPED)
            raise FileNotFoundError(
                f"there is no data file {name!r}; give an existing .jsonl file or a shipped set: {shipped}"
            )
    if path.suffix not in OPENERS:
        raise ValueError(f"{path} is no .jsonl, .jsonl.gz or .jsonl.xz file; write one JSON object a line")
    pairs: list[Pair] = []
    with OPENERS[path.suffix](path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(pairs) == limit:
                break
            if line.strip():
                pairs.append(_pair(line, f"{path}, line {number}", source_field, target_field))
    if not pairs:
        raise ValueError(f"{path} holds no examples; write one JSON object a line")
    return pairs


def _pair(line: str, where: str, source_field: str, target_field: str) -> Pair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON ({error.msg}); write one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object; write one object a line")
    for field in (source_field, target_field):
        if field not in row:
            raise ValueError(
                f"{where}: there is no field {field!r}, only {', '.join(map(repr, row))}; set data.source_field and"
                " data.target_field"
            )
        if not isinstance(row[field], str):
            raise ValueError(f"{where}: field {field!r} is {type(row[field]).__name__}, not text")
    return Pair(row[source_field], row[target_field])
