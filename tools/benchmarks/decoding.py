"""Measures decoding by ours, torch's generate, the Flax class of transformers 4 and CTranslate2.

The floor is a lower bound on the time, from the machine's measured speed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seq2seq_jax.config import nearest
from seq2seq_jax.config.validation import check
from seq2seq_jax.training.flops import decode_products, source_products
from tools.benchmarks.peers.processes import Peer
from tools.benchmarks.peers.systems import SIZES, Size, System, started
from tools.benchmarks.side_by_side import Options, Rates, figures, in_turn, model_of, rates_of, reference_of


class Row(NamedTuple):
    """What is decoded: a random batch, to exactly `steps` tokens, or the texts of a corpus, each to its end.

    Attributes:
      size: one of `SIZES`, or the pair's directory. source, steps: numbers of tokens; for a corpus, the number of texts
        and 0.
      growth: whether the row measures how the cost of a token grows with their number; ours alone decodes it.
    """

    size: str
    batch: int
    beams: int
    source: int
    steps: int
    growth: bool = False

    @property
    def corpus(self) -> bool:
        return self.steps == 0

    def __str__(self) -> str:
        return f"{self.size}:{self.batch}x{self.beams}x{self.source}x{self.steps or 'end'}"


HEADLINES = {
    "cpu": (Row("base", 4, 4, 128, 64), Row("base", 16, 4, 512, 32)),
    "gpu": (Row("base", 8, 4, 128, 64), Row("base", 8, 4, 512, 32)),
}
GRID = tuple(
    Row(size, batch, beams, source, steps)
    for size in ("base", "small")
    for source, steps in ((128, 64), (512, 32))
    for batch in (1, 4, 16)
    for beams in (1, 4)
)
GROWTH = tuple(Row("base", 4, 4, 128, steps, growth=True) for steps in (16, 32, 64, 128))
CORPUS = "corpus"
KINDS = ("headline", "grid", "growth", CORPUS, "all")


def parse_rows(names: Iterable[str], device: str, pair: str) -> tuple[Row, ...]:
    """The rows of these names: headline, grid, growth, corpus, all (of these), or SIZE:BATCHxBEAMSxSOURCExSTEPS.

    Args:
      pair: the directory of the pair that decodes the corpus.

    Raises:
      ValueError: for an unknown name; names the nearest.
    """
    kinds = {
        "headline": HEADLINES[device],
        "grid": GRID,
        "growth": GROWTH,
        CORPUS: (Row(pair, batch=16, beams=4, source=1000, steps=0),),
    }
    kinds["all"] = tuple(row for rows in kinds.values() for row in rows)
    found = [row for name in names for row in kinds.get(name) or (_shape(name),)]
    return tuple(dict.fromkeys(found))


def _shape(name: str) -> Row:
    size, colon, shape = name.partition(":")
    check(bool(colon), f"row {name!r} is unknown: {nearest(name, KINDS)}, or SIZE:BATCHxBEAMSxSOURCExSTEPS")
    check(size in SIZES, f"row {name!r}: size {size!r} is unknown: {nearest(size, SIZES)}")
    numbers = shape.split("x")
    legible = len(numbers) == 4 and all(number.isdecimal() and int(number) > 0 for number in numbers)
    check(legible, f"row {name!r} is unreadable; write it as {size}:BATCHxBEAMSxSOURCExSTEPS, {size}:4x4x128x64 say")
    row, most = Row(size, *map(int, numbers)), SIZES[size].positions
    check(row.source <= most, f"row {name!r}: source {row.source} is beyond {most} positions; lower it")
    check(row.steps < most, f"row {name!r}: {row.steps} steps are beyond {most} positions less one; lower them")
    return row


def source_flops(size: Size, row: Row) -> float:
    """FLOPs before the first step: the encoder, and the decoder's keys and values of its states."""
    return sum(product.flops for product in source_products(model_of(size), row.batch, row.source))


def step_work(size: Size, row: Row, position: int, width: int) -> tuple[float, float]:
    """FLOPs of the step that writes token `position` (from 1), and the bytes that it must read.

    A step reads each kernel once, what a beam has written once for each beam, and the source's keys and values once for
    all beams of a row. Biases and norms are not counted.

    Args:
      width: bytes of a number.
    """
    hypotheses = row.batch * row.beams
    products = list(decode_products(model_of(size), hypotheses, row.source, position))
    kernels = sum(product.flops for product in products if not product.attention) / (2 * hypotheses)
    cache = size.layers * 2 * size.hidden * (hypotheses * position + row.batch * row.source)
    return sum(product.flops for product in products), width * (kernels + cache)


def floor_seconds(size: Size, row: Row, rates: Rates, width: int) -> float:
    """The least time of a row, in seconds: all FLOPs at the rate of a large matrix product, and each step at least as
    long as reading its bytes takes.

    Args:
      width: bytes of a number.
    """
    steps = [step_work(size, row, position, width) for position in range(1, row.steps + 1)]
    limits = (max(flops / rates.flops, count / rates.bandwidth) for flops, count in steps)
    return source_flops(size, row) / rates.flops + sum(limits)


@dataclass(frozen=True)
class Result:
    """What one system measured on one row.

    Attributes:
      times: seconds of each call after the first. first: seconds of the first call, which compiles.
      tokens: the number of tokens written.
      peak: the most memory in use in the calls after the first, in bytes, of the process (CPU) or on the device (GPU),
        weights included. peak_since: "start" if it could only be read for the time since the start.
      outputs: ids or a string for each text; None if the system does not return them.
      floor: seconds; None if unknown. rates: of the machine. versions: of the system's packages.
    """

    system: str
    row: Row
    times: tuple[float, ...]
    first: float
    tokens: int
    peak: int
    peak_since: str
    outputs: Sequence[Any] | None = field(default=None, repr=False)
    floor: float | None = None
    rates: Rates | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)


class _Task(NamedTuple):
    """The request for a row, and a function that counts the tokens of an answer."""

    row: Row
    request: Mapping[str, Any]
    tokens: Callable[[Mapping[str, Any]], int]


def measure(rows: Sequence[Row], systems: Sequence[System], options: Options) -> Iterator[list[Result]]:
    """Yields the results of each row when they are there. New processes for each row keep their peak memory apart.

    Raises:
      RuntimeError: if a peer cannot be started, ends early, or writes fewer tokens than requested.
      FileNotFoundError: if the corpus's pair or data are missing.
    """
    # All requests are made before the first is sent, so that a missing file is reported at once.
    tasks = [_texts(row, options) if row.corpus else _random_ids(row) for row in rows]
    for task in tasks:
        able = [s for s in systems if _takes(s, task.row)]
        with started(able, task.row.size, options.device, options.environments, options.in_place) as peers:
            yield _interleaved(task, peers, options)


def _takes(system: System, row: Row) -> bool:
    return system.corpus if row.corpus else system.peer == "ours" if row.growth else True


def _interleaved(task: _Task, peers: Mapping[str, Peer], options: Options) -> list[Result]:
    answers = in_turn(peers, task.request, options, str(task.row))
    # After the calls, because on a GPU its memory would count as the row's.
    rates = None if task.row.corpus else rates_of(peers, options.device)
    floor = rates and floor_seconds(SIZES[task.row.size], task.row, rates, options.width)
    return [_result(name, task, got, floor, rates, peers[name].versions) for name, got in answers.items()]


def _result(
    name: str,
    task: _Task,
    answers: Sequence[Mapping[str, Any]],
    floor: float | None,
    rates: Rates | None,
    versions: Mapping[str, str],
) -> Result:
    first, *later = answers
    row, tokens = task.row, task.tokens(first)
    if not row.corpus and tokens != row.batch * row.steps:
        raise RuntimeError(f"{name} wrote {tokens} tokens of {row.batch * row.steps} ({row}): it ended early")
    return Result(
        system=name,
        row=row,
        times=tuple(answer["seconds"] for answer in later),
        first=first["seconds"],
        tokens=tokens,
        peak=max(answer["peak"] for answer in later),
        peak_since=later[0]["peak_since"],
        outputs=first.get("outputs"),
        floor=floor,
        rates=rates,
        versions=versions,
    )


def _random_ids(row: Row) -> _Task:
    ids = np.random.default_rng(0).integers(1000, SIZES[row.size].vocab, (row.batch, row.source))
    request = {"kind": "decode", "input_ids": ids.tolist(), "beams": row.beams, "steps": row.steps}
    return _Task(row, request, lambda answer: answer["tokens"])


def _texts(row: Row, options: Options) -> _Task:
    from seq2seq_jax.data.sources import load_pairs  # the other rows need no `datasets`
    from seq2seq_jax.text.tokenizer import Tokenizers
    from seq2seq_jax.weights.files import read_json
    from seq2seq_jax.weights.hf_config import pair_from_hf

    directory = Path(row.size)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"there is no pair {row.size!r} for the row {CORPUS!r}; train it (python scripts/train.py"
            " --config=configs/quickstart.py --workdir=runs/quickstart), give --pair=..., or other --rows"
        )
    tokenizers = Tokenizers.load(directory, directory)
    most = pair_from_hf(read_json(directory / "config.json"), None).encoder.max_positions
    texts = load_pairs(options.data, source_field="document", target_field="summary", limit=row.source)["source"][:]
    request = {
        "kind": CORPUS, "ids": tokenizers.source.encode_batch(texts, max_length=most), "pad": tokenizers.source.fill_id,
        "batch": row.batch, "beams": row.beams,
    }  # fmt: skip

    def tokens(answer):
        return sum(len(ids) - 1 for ids in tokenizers.target.encode_batch(answer["outputs"]))  # less the start token

    return _Task(row._replace(source=len(texts)), request, tokens)


HEADER = (
    "size", "system", "batch", "beams", "source", "steps", "seconds", "tokens/s", "peak MB", "compile s",
    "torch / this", "of the floor", "as torch",
)  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a line for each result, an explanation of the columns, and the lines of `growth`."""
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    lines += [f"| {' | '.join(_cells(r, reference_of(r, results)))} |" for r in results]
    lines += [
        "",
        "seconds: of a whole call, median; compile s: the first call less that; peak MB: of the process on a CPU, on"
        f" the device on a GPU, weights included{_since_start(results)}; of the floor: its share of the seconds; as"
        " torch: outputs that equal torch's.",
    ]
    return "\n".join([*lines, *growth(results)])


def _since_start(results: Sequence[Result]) -> str:
    names = dict.fromkeys(r.system for r in results if r.peak_since == "start")
    return f" (the highest since the start, not of this row alone: {', '.join(names)})" if names else ""


def equal_outputs(result: Result, reference: Result | None) -> int | None:
    """How many outputs equal those of `reference`; None if one of both has none."""
    if reference is None or result.outputs is None or reference.outputs is None:
        return None
    return sum(a == b for a, b in zip(result.outputs, reference.outputs))


def _cells(result: Result, reference: Result | None) -> list[str]:
    row, seconds, equal = result.row, result.seconds, equal_outputs(result, reference)
    shape = [str(row.source), str(row.steps)]
    return [
        "its own" if row.corpus else row.size,
        result.system,
        str(row.batch),
        str(row.beams),
        *([f"{row.source} texts", "to the end"] if row.corpus else shape),
        f"{seconds:.3g}",
        f"{result.tokens / seconds:.3g}" if result.tokens < 1000 * seconds else f"{result.tokens / seconds:.0f}",
        f"{result.peak / 1e6:.0f}",
        f"{max(0.0, result.first - seconds):.1f}",
        "–" if reference is None else f"{reference.seconds / seconds:.2f}",
        "–" if result.floor is None else f"{100 * result.floor / seconds:.0f} %",
        "–" if equal is None else f"{equal} of {len(result.outputs)}",
    ]


def growth(results: Sequence[Result]) -> list[str]:
    """The cost of a step between successive numbers of steps of a system's growth rows, with the floor of that cost."""
    lines = []
    for name in dict.fromkeys(r.system for r in results if r.row.growth):
        mine = sorted((r for r in results if r.row.growth and r.system == name), key=lambda r: r.row.steps)
        costs = []
        for low, high in itertools.pairwise(mine):
            steps = high.row.steps - low.row.steps
            floor = "" if low.floor is None else f" (floor {1e3 * (high.floor - low.floor) / steps:.1f})"
            costs.append(
                f"{low.row.steps} to {high.row.steps}: {1e3 * (high.seconds - low.seconds) / steps:.1f} ms{floor}"
            )
        lines += ["", f"{name}, a step of {mine[0].row.batch} texts: {'; '.join(costs)}."]
    return lines


def as_json(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """A result as a line of --output."""
    reference = reference_of(result, results)
    return {**figures(result, reference), "tokens": result.tokens, "equal_outputs": equal_outputs(result, reference)}
