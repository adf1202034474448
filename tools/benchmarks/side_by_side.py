"""Runs systems side by side, each in a process of its own and one call at a time, and measures the machine's speed."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from seq2seq_jax.config import EncoderDecoderConfig, nearest
from seq2seq_jax.config.validation import check
from seq2seq_jax.families.registry import from_hf
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from tools.benchmarks.peers.processes import Peer
from tools.benchmarks.peers.systems import DTYPES, SYSTEMS, Size
from tools.log import log

REFERENCE = "torch"  # the system that times and outputs are compared with
# The speed of the machine is measured with matrices [width, width] and [8 * width, width], of 128 MiB and 1 GiB.
RATE_WIDTHS = {"cpu": 2048, "gpu": 8192}


class Rates(NamedTuple):
    """The measured speed of the machine: FLOP/s of a large matrix product, bytes/s of its memory."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Options:
    """Options of a measurement.

    Attributes:
      device: "cpu" (float32) or "gpu" (bfloat16).
      repeats: the number of calls after the first; their median is reported. turn: how many of them one system makes in
        a row.
      environments: the directory of the peers' environments and models, which are made if missing; see `REQUIREMENTS`.
      in_place: all peers use this Python.
      data: the texts of the corpus row (see `load_pairs`), in the column "document".
      config: fields of our run's config for training.
    """

    device: str = "cpu"
    repeats: int = 3
    turn: int = 1
    environments: Path = Path("~/.cache/seq2seq_jax/benchmark")
    in_place: bool = False
    data: str = "debian-synopsis:train"
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check(self.device in DTYPES, f"device {self.device!r} is unknown: {nearest(self.device, DTYPES)}")
        check(self.repeats > 0, f"repeats is {self.repeats}; give at least 1")
        check(
            self.turn > 0 and self.repeats % self.turn == 0,
            f"turn is {self.turn}, and does not divide repeats, {self.repeats}; give one that does",
        )
        object.__setattr__(self, "environments", Path(self.environments).expanduser().absolute())

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return jnp.dtype(DTYPES[self.device]).itemsize


def model_of(size: Size) -> EncoderDecoder:
    """A pair of two BERTs, the model of a benchmark."""
    sides = (from_hf(size.bert, role) for role in ("encoder", "decoder"))
    return EncoderDecoder(EncoderDecoderConfig(*sides, 1, 0, ()))


def in_turn(
    peers: Mapping[str, Peer], request: Mapping[str, Any], options: Options, label: str
) -> dict[str, list[dict[str, Any]]]:
    """Each system's answers: to a first call, then to options.repeats calls. The systems take turns, and only one works
    at a time, so that other load on the machine affects all of them alike."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for calls in (1, *[options.turn] * (options.repeats // options.turn)):
        for name, got in answers.items():
            for _ in range(calls):
                got.append(peers[name].ask(request))
                log(f"{label} {name}: {got[-1]['seconds']:.2f} s{'' if got[1:] else ' (first call)'}")
    return answers


def rates_of(peers: Mapping[str, Peer], device: str) -> Rates | None:
    """The speed of the machine, measured by our peer; None if it is not among `peers`."""
    ours = next((peer for name, peer in peers.items() if SYSTEMS[name].peer == "ours"), None)
    if ours is None:
        return None
    found = ours.ask({"kind": "rates", "width": RATE_WIDTHS[device]})
    log(f"{found['chip']}: {found['flops'] / 1e9:.0f} GFLOP/s, {found['bandwidth'] / 1e9:.1f} GB/s")
    return Rates(found["flops"], found["bandwidth"])


def reference_of(result: Any, results: Sequence[Any]) -> Any | None:
    """The result of `REFERENCE` on the same row, if it is among `results`."""
    return next((r for r in results if r.system == REFERENCE and r.row == result.row), None)


def figures(result: Any, reference: Any | None) -> dict[str, Any]:
    """The fields of every line of --output: the row's, times, memory, the machine's speed, versions."""
    return {
        "system": result.system,
        **result.row._asdict(),
        "seconds": result.seconds,
        "times": list(result.times),
        "first": result.first,
        "peak": result.peak,
        "peak_since": result.peak_since,
        "floor": result.floor,
        "rates": result.rates and result.rates._asdict(),
        "reference_seconds": reference and reference.seconds,
        "versions": dict(result.versions),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory (bytes) and operating system of this machine."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def _field(path: str, name: str) -> str | None:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
