"""GGUF files (llama.cpp): the container, read without the `gguf` package, and its tensors as a checkpoint.

Source: docs/gguf.md of ggml. Only quantized tensors need the package, for `gguf.quants.dequantize`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from seq2seq_jax.weights import gguf_models, hf_config
from seq2seq_jax.weights.files import SAFETENSORS, TORCH, Checkpoint

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {i: np.dtype(t) for i, t in enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))}
NUMBERS |= {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}  # tensors that are not quantized


class Tensor(NamedTuple):
    """Shape in the order of torch, ggml's number of its type, first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a file: the metadata of the model and the tokenizer, and where the tensors are."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that a directory without other weights holds; None where there is none.

    Raises:
      ValueError: if the directory holds several.
    """
    if path.is_file():
        return path
    if any((path / name).exists() for name in (*SAFETENSORS, *TORCH)):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path} holds {len(found)} GGUF files ({names}); give the path of one of them")
    return found[0] if found else None


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a checkpoint, made from the metadata where it is a GGUF file."""
    file = find_gguf(path)
    if file is None:
        return hf_config.read_config(path / "config.json")
    header = read_gguf(file)
    return gguf_models.config(header, lambda name: GgufCheckpoint.values(header, name))


def open_checkpoint(path: Path, note: Callable[[str], None] = lambda text: None) -> Checkpoint | GgufCheckpoint:
    """The tensors of a directory, or of a GGUF file; `note` is called with a line about each thing that is left out."""
    file = find_gguf(path)
    return Checkpoint(path, note) if file is None else GgufCheckpoint(file)


class GgufCheckpoint:
    """The tensors of a GGUF file by transformers' names, read one at a time; the interface of `files.Checkpoint`.

    Values are float32 where the file has them quantized, and otherwise of the file's own type. Rows that llama.cpp
    reorders and the 1 that it adds to Gemma's norms are put back.
    """

    def __init__(self, file: Path):
        self.directory, self._header = file, read_gguf(file)
        self._where = gguf_models.names(self._header)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def read(self, name: str) -> np.ndarray:
        stored = self._where[name]
        return gguf_models.restored(self._header, stored, self.values(self._header, stored))

    def file_of(self, name: str) -> Path:
        return self._header.path

    def origin(self, name: str) -> str:
        """How the values came about, for the report; "" where they are the file's own."""
        kind = self._header.tensors[self._where[name]].kind
        return (
            "" if kind in PLAIN else f"dequantized from {_library(self._header.path).GGMLQuantizationType(kind).name}"
        )

    @staticmethod
    def values(header: GgufFile, stored: str) -> np.ndarray:
        """A tensor by its name in the file, as it is there but for quantization."""
        tensor = header.tensors[stored]
        if tensor.kind in PLAIN:
            count = math.prod(tensor.shape)
            return np.fromfile(header.path, PLAIN[tensor.kind], count, offset=tensor.start).reshape(tensor.shape)
        gguf = _library(header.path)
        kind = gguf.GGMLQuantizationType(tensor.kind)
        rows = (*tensor.shape[:-1], _row_bytes(gguf, kind, tensor.shape[-1]))
        data = np.fromfile(header.path, np.uint8, math.prod(rows), offset=tensor.start).reshape(rows)
        try:
            return gguf.quants.dequantize(data, kind)
        except NotImplementedError:
            raise ValueError(
                f"{header.path}: {stored} is of the type {kind.name}, which the package gguf cannot dequantize; take"
                " the model in another type, such as Q8_0"
            ) from None


def _library(path: Path) -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise ImportError(
            f"{path} holds quantized tensors, which need the package gguf; run: pip install 'seq2seq_jax[gguf]'"
        ) from None
    return gguf


def _row_bytes(gguf: Any, kind: Any, columns: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return columns // block * size


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a file.

    Raises:
      FileNotFoundError, ValueError: no such file; not GGUF, of an old version, cut short, or a part of several.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of a .gguf file")
    size = path.stat().st_size
    if size < 24 or path.open("rb").read(4) != MAGIC:
        raise ValueError(f"{path} is no GGUF file (it does not begin with {MAGIC.decode()!r}); fetch it again")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        version = struct.unpack_from("<I", data, 4)[0]
        if version not in VERSIONS:
            raise ValueError(
                f"{path} is of GGUF version {version}, and versions {VERSIONS[0]} and {VERSIONS[1]} in little-endian"
                " order are read; convert the model again"
            )
        try:
            header = _header(path, _Cursor(data, 8))
        except (struct.error, IndexError, UnicodeDecodeError, MemoryError, OverflowError):
            raise ValueError(f"{path} is damaged or cut short (in its header); fetch it again") from None
    parts = header.metadata.get("split.count", 0)
    if parts > 1:
        raise ValueError(
            f"{path} is one of {parts} parts of a model; join them (llama-gguf-split --merge), give the whole"
        )
    for name, tensor in header.tensors.items():
        if tensor.kind in PLAIN:
            end = tensor.start + math.prod(tensor.shape) * PLAIN[tensor.kind].itemsize
        else:
            end = tensor.start + 1
        if end > size:
            raise ValueError(f"{path} is cut short (tensor {name!r} lies behind its end); fetch it again")
    return header


class _Cursor:
    """A position in the file that advances with each read."""

    def __init__(self, data: mmap.mmap, at: int):
        self.data, self.at = data, at

    def number(self, kind: int) -> Any:
        return self.array(kind, 1)[0]

    def array(self, kind: int, count: int) -> list[Any]:
        dtype = NUMBERS[kind]
        begin, self.at = self.at, self.at + count * dtype.itemsize
        if self.at > len(self.data):
            raise IndexError(kind)
        return np.frombuffer(self.data[begin : self.at], dtype).tolist()

    def text(self) -> str:
        begin = self.at + 8
        self.at = begin + struct.unpack_from("<Q", self.data, self.at)[0]
        if self.at > len(self.data):
            raise IndexError("text")
        return self.data[begin : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number(4), self.number(10)
            return self.array(kind, count) if kind in NUMBERS else [self.value(kind) for _ in range(count)]
        if kind not in NUMBERS:
            raise IndexError(kind)
        return self.number(kind)


def _header(path: Path, cursor: _Cursor) -> GgufFile:
    tensor_count, count = cursor.array(10, 2)
    metadata = {cursor.text(): cursor.value(cursor.number(4)) for _ in range(count)}
    entries = []
    for _ in range(tensor_count):
        name, dims = cursor.text(), cursor.number(4)
        shape = tuple(reversed(cursor.array(10, dims)))  # ggml counts from the innermost
        entries.append((name, shape, cursor.number(4), cursor.number(10)))
    step = metadata.get("general.alignment", 32)
    begin = -(-cursor.at // step) * step
    tensors = {name: Tensor(shape, kind, begin + offset) for name, shape, kind, offset in entries}
    return GgufFile(path, metadata, tensors)
