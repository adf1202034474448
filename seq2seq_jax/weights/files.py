"""Checkpoint directories: where they are, their tensors read one at a time, and safetensors written in shards."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from seq2seq_jax.config.validation import first_line
from seq2seq_jax.weights.soundness import unfit_dtype
from seq2seq_jax.weights.state_dicts import flat_tensors, modern_names

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
HUB_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "merges.txt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SAFETENSORS_DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "U8": np.dtype(np.uint8), "BOOL": np.dtype(bool)},
}
HUB_ERRORS = (OSError, ValueError)  # what huggingface_hub raises for ids, tokens, repositories and the network
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def local_directory(path_or_id: str | os.PathLike, patterns: Iterable[str] = HUB_PATTERNS) -> Path:
    """A directory on disk, or a .gguf file: `path_or_id` itself, or the hub repository of that name, downloaded.

    Only a name that can be a hub id is looked for on the network.

    Args:
      patterns: which files of a hub repository are fetched.

    Raises:
      FileNotFoundError: if it is neither.
    """
    path, name = Path(path_or_id).expanduser(), str(path_or_id)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.exists():
        raise FileNotFoundError(f"{name!r} is a file; give the directory that holds it")
    if path.suffix == ".gguf":
        raise FileNotFoundError(f"there is no file {name!r}; give the path of a .gguf file on disk")
    # "owner/name" of the hub has a separator too: it is taken for a path where the owner is a directory here.
    local = isinstance(path_or_id, os.PathLike) or (len(path.parts) > 1 and path.parent.is_dir())
    if local or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"there is no directory {name!r}; give an existing one, or a hub id such as 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, allow_patterns=list(patterns)))
        # Only checkpoints without safetensors need their .bin files.
        if "*.safetensors" in patterns and not any((found / file).exists() for file in SAFETENSORS):
            found = Path(snapshot_download(name, allow_patterns=[*patterns, "*.bin"]))
        return found
    except HUB_ERRORS as error:
        raise FileNotFoundError(
            f"there is no directory {name!r}, and the hub did not give it ({hub_reason(error)}); check the id and the"
            " network, or give a directory"
        ) from error


def hub_reason(error: Exception) -> str:
    """The first line of what huggingface_hub says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a file; errors name the file. optional: {} where there is no such file."""
    if not path.is_file():
        if optional:
            return {}
        raise FileNotFoundError(f"{path} is missing; a checkpoint directory needs it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise ValueError(f"{path} is no valid JSON ({place}); fetch or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object; fetch or write it again")
    return value


class Checkpoint:
    """The tensors of a directory, by their modern names (`state_dicts.modern_name`), read one at a time.

    It reads safetensors (one file, or shards with an index), or else `.bin` files through torch (weights_only).

    Args:
      note: called with a line about each thing that is left out.
    """

    def __init__(self, directory: Path, note: Callable[[str], None] = lambda text: None):
        self.directory, self._note = directory, note
        self._open: dict[Path, Any] = {}
        self._where = modern_names({name: file for file in self._files() for name in self._handle(file).names()}, note)

    def _files(self) -> list[Path]:
        for single, index in (SAFETENSORS, TORCH):
            if (self.directory / single).exists():
                return [self.directory / single]
            if (self.directory / index).exists():
                names = sorted(set(read_json(self.directory / index)["weight_map"].values()))
                missing = [name for name in names if not (self.directory / name).exists()]
                if missing:
                    raise FileNotFoundError(
                        f"{self.directory / index} names {missing[0]!r}, which is missing ({len(missing)} of"
                        f" {len(names)} shards are); fetch it again"
                    )
                return [self.directory / name for name in names]
        raise FileNotFoundError(f"{self.directory} holds no weights; looked for {', '.join((*SAFETENSORS, *TORCH))}")

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            safe = file.suffix == ".safetensors"
            self._open[file] = SafetensorsFile(file) if safe else TorchFile(file, self._note)
        return self._open[file]

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def read(self, name: str) -> np.ndarray:
        """The tensor in the dtype of the file."""
        file, stored = self._where[name]
        return self._handle(file).read(stored)

    def file_of(self, name: str) -> Path:
        return self._where[name][0]

    def origin(self, name: str) -> str:
        """How the values were made, for the report; "" where they are the file's own."""
        return ""


class SafetensorsFile:
    """The tensors of one file. Each read returns its own memory: the library maps the file, and pages that were read
    would count as this process's memory until the end."""

    def __init__(self, file: Path):
        self._file, self._entries = file, {}
        try:
            with safe_open(file, framework="np") as checked:  # the library checks that the file is complete
                names = list(checked.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut short ({error}); fetch it again") from None
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        self._entries = {name: header[name] for name in names}
        self._start = 8 + size

    def names(self) -> list[str]:
        return list(self._entries)

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise unfit_dtype(self._file, name, entry["dtype"])
        dtype, (begin, end) = SAFETENSORS_DTYPES[entry["dtype"]], entry["data_offsets"]
        count = (end - begin) // dtype.itemsize
        return np.fromfile(self._file, dtype, count, offset=self._start + begin).reshape(entry["shape"])


class TorchFile:
    """The tensors of one `.bin` file, memory-mapped where torch 1.6 or later wrote it. No code in the file is run."""

    def __init__(self, file: Path, note: Callable[[str], None]):
        try:
            import torch
        except ImportError:
            raise ImportError(
                f"reading {file} needs torch (pip install torch), or save the checkpoint as safetensors first"
            ) from None
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:
            raise ValueError(
                f"{file} cannot be read as tensors only ({_refusal(error)}); fetch it again, or save safetensors"
            ) from None
        self._file, self._tensors = file, flat_tensors(content, file, torch.is_tensor, note)

    def names(self) -> list[str]:
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name].detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        try:
            return tensor.numpy()
        except (TypeError, RuntimeError):  # float8, quantised, sparse, without storage
            raise unfit_dtype(self._file, name, _kind(tensor)) from None


def _kind(tensor: Any) -> str:
    """A torch tensor's dtype, with its layout and device where these are not strided and cpu."""
    layout, device = str(tensor.layout).removeprefix("torch."), tensor.device.type
    more = [part for part, plain in ((layout, "strided"), (device, "cpu")) if part != plain]
    return " ".join([str(tensor.dtype).removeprefix("torch."), *more])


def _refusal(error: Exception) -> str:
    """torch's reason for refusing a file, without its advice to load it unsafely."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    named = next((line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line), lines[0])
    return re.split(r"\. (?=[A-Z])", named.strip().removesuffix("."))[0]


def parse_size(size: int | str) -> int:
    """Bytes of "5GB", "200MB" or a number."""
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", str(size).upper())
    if not match:
        raise ValueError(f"max_shard_size is {size!r}; give a number of bytes, or a text such as '5GB' or '200MB'")
    return int(float(match[1]) * UNITS[match[2]])


def write_safetensors(directory: Path, tensors: Iterator[tuple[str, np.ndarray]], max_shard_size: int | str) -> None:
    """Writes model.safetensors, or shards of at most `max_shard_size` with an index; holds one shard in memory.

    Files of before are replaced only after all are written.
    """
    limit, shard, size, total = parse_size(max_shard_size), {}, 0, 0
    shard_names: list[list[str]] = []

    def flush() -> None:
        file = directory / f"shard-{len(shard_names)}.tmp"
        file.touch()
        mode = file.stat().st_mode
        save_file(shard, file, metadata={"format": "pt"})
        file.chmod(mode)  # save_file lets only the owner read it
        shard_names.append(list(shard))
        shard.clear()

    for name, array in tensors:
        if shard and size + array.nbytes > limit:
            flush()
            size = 0
        # save_file writes the buffer as it lies in memory, so a transposed view would be stored wrongly.
        shard[name] = np.ascontiguousarray(array)
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    for stale in (*directory.glob("model*.safetensors"), directory / SAFETENSORS[1]):
        stale.unlink(missing_ok=True)
    weight_map = {}
    for i, names in enumerate(shard_names):
        file = SAFETENSORS[0] if len(shard_names) == 1 else f"model-{i + 1:05d}-of-{len(shard_names):05d}.safetensors"
        (directory / f"shard-{i}.tmp").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    if len(shard_names) > 1:
        write_json(directory / SAFETENSORS[1], {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
