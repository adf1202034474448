"""Measures training steps of ours, torch (eager and compiled) and the Flax class of transformers 4.

The floor is a lower bound on the time, from the machine's measured speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from seq2seq_jax.config import nearest
from seq2seq_jax.config.validation import check
from seq2seq_jax.training.flops import useful_flops
from tools.benchmarks.peers.systems import SIZES, Size, System, started
from tools.benchmarks.side_by_side import Options, Rates, figures, in_turn, model_of, rates_of, reference_of

LEARNING_RATE = 5e-5
KINDS = ("headline", "cost", "all")


class Row(NamedTuple):
    """A training step with AdamW and clipping, and dropout of 0.1 as in the checkpoint's config.

    Attributes:
      size: one of `SIZES`. batch: examples, each of `source` and `target` tokens without padding.
    """

    size: str
    batch: int
    source: int
    target: int

    def __str__(self) -> str:
        return f"{self.size}:{self.batch}x{self.source}x{self.target}"

    @property
    def tokens(self) -> int:
        return self.batch * (self.source + self.target)


HEADLINES = {
    "cpu": (Row("base", 8, 128, 64), Row("small", 8, 128, 64)),
    "gpu": (Row("base", 32, 512, 128), Row("small", 32, 512, 128)),
}
# The cost of a token with longer texts, other batches and other vocabularies.
COST = tuple(Row("small", *shape) for shape in ((8, 64, 32), (8, 256, 64), (8, 512, 64), (2, 128, 64), (32, 128, 64)))
COST += (Row("small-8k", 8, 128, 64), Row("small-120k", 8, 128, 64))


def parse_rows(names: Iterable[str], device: str) -> tuple[Row, ...]:
    """The rows of these names: headline, cost, all (of these), or SIZE:BATCHxSOURCExTARGET.

    Raises:
      ValueError: for an unknown name; names the nearest.
    """
    kinds = {"headline": HEADLINES[device], "cost": COST, "all": HEADLINES[device] + COST}
    return tuple(dict.fromkeys(row for name in names for row in kinds.get(name) or (_shape(name),)))


def _shape(name: str) -> Row:
    size, colon, shape = name.partition(":")
    check(bool(colon), f"row {name!r} is unknown: {nearest(name, KINDS)}, or SIZE:BATCHxSOURCExTARGET")
    check(size in SIZES, f"row {name!r}: size {size!r} is unknown: {nearest(size, SIZES)}")
    numbers = shape.split("x")
    legible = len(numbers) == 3 and all(number.isdecimal() and int(number) > 0 for number in numbers)
    check(legible, f"row {name!r} is unreadable; write it as {size}:BATCHxSOURCExTARGET, {size}:8x128x64 say")
    row, most = Row(size, *map(int, numbers)), SIZES[size].positions
    check(max(row[2:]) <= most, f"row {name!r}: {max(row[2:])} tokens are beyond {most} positions; lower them")
    return row


def model_flops(size: Size, row: Row) -> float:
    """FLOPs of a step's matrix products, forward and backward."""
    return useful_flops(model_of(size), None, row.batch, row.source, row.target)


@dataclass(frozen=True)
class Result:
    """What one system measured on one row.

    Attributes:
      times: seconds of each step after the first. first: seconds of the first step, which compiles.
      losses: of all steps, in nats.
      peak: the most memory in use in the steps after the first, in bytes, of the process (CPU) or on the device (GPU).
        peak_since: "start" if it could only be read for the time since the start.
      rates: of the machine; None if ours was not among the systems. versions: of the system's packages.
    """

    system: str
    row: Row
    times: tuple[float, ...]
    first: float
    losses: tuple[float, ...]
    peak: int
    peak_since: str
    rates: Rates | None
    versions: Mapping[str, str]

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    @property
    def floor(self) -> float | None:
        """The seconds that the model's FLOPs take at the rate of a large matrix product."""
        return self.rates and model_flops(SIZES[self.row.size], self.row) / self.rates.flops


def measure(rows: Sequence[Row], systems: Sequence[System], options: Options) -> Iterator[list[Result]]:
    """Yields the results of each row when they are there. New processes for each row keep their peak memory apart.

    Raises:
      RuntimeError: if a peer cannot be started or ends early.
    """
    for row in rows:
        common = (row.size, options.device, options.environments, options.in_place)
        with started(systems, *common, work="train", learning_rate=LEARNING_RATE, config=dict(options.config)) as peers:
            answers = in_turn(peers, _request(row), options, str(row))
            rates = rates_of(peers, options.device)
            yield [_result(name, row, got, rates, peers[name].versions) for name, got in answers.items()]


def _request(row: Row) -> dict[str, Any]:
    draw = lambda length: np.random.default_rng(length).integers(1000, SIZES[row.size].vocab, (row.batch, length))
    arrays = {"input_ids": draw(row.source), "attention_mask": np.ones((row.batch, row.source), int)}
    arrays["labels"] = draw(row.target)
    return {"kind": "train", "arrays": {name: array.tolist() for name, array in arrays.items()}}


def _result(name: str, row: Row, answers: Sequence[Mapping[str, Any]], rates: Rates | None, versions) -> Result:
    first, *later = answers
    return Result(
        system=name,
        row=row,
        times=tuple(answer["seconds"] for answer in later),
        first=first["seconds"],
        losses=tuple(answer["loss"] for answer in answers),
        peak=max(answer["peak"] for answer in later),
        peak_since=later[0]["peak_since"],
        rates=rates,
        versions=versions,
    )


HEADER = (
    "size", "system", "batch", "source", "target", "seconds", "tokens/s", "TFLOP/s", "MFU", "peak MB", "compile s",
    "torch / this", "this / floor", "last loss",
)  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a line for each result, and an explanation of the columns."""
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    lines += [f"| {' | '.join(_cells(r, reference_of(r, results)))} |" for r in results]
    return "\n".join([
        *lines,
        "",
        "seconds: of a step, median; tokens/s: source and target; TFLOP/s: of the model's products; MFU: their share of"
        " a large product's rate, measured in the same run; peak MB: of the process on a CPU, on the device on a GPU;"
        " compile s: the first step less the others; floor: the products at the large one's rate.",
    ])  # fmt: skip


def _cells(result: Result, reference: Result | None) -> list[str]:
    row, seconds, floor = result.row, result.seconds, result.floor
    return [
        row.size,
        result.system,
        *map(str, row[1:]),
        f"{seconds:.3g}",
        f"{row.tokens / seconds:.0f}",
        f"{model_flops(SIZES[row.size], row) / seconds / 1e12:.3g}",
        "–" if floor is None else f"{100 * floor / seconds:.0f} %",
        f"{result.peak / 1e6:.0f}",
        f"{max(0.0, result.first - seconds):.1f}",
        "–" if reference is None else f"{reference.seconds / seconds:.2f}",
        "–" if floor is None else f"{seconds / floor:.2f}",
        f"{result.losses[-1]:.3f}",
    ]


def as_json(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """A result as a line of --output."""
    reference = reference_of(result, results)
    return {**figures(result, reference), "losses": list(result.losses)}
