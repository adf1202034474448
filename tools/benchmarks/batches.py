"""Compares padding, buckets and packing by the time of an epoch of real lengths.

The time is computed from that of one step of each shape.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seq2seq_jax.config import BatchConfig, DataConfig, nearest
from seq2seq_jax.config.validation import check
from seq2seq_jax.data.encoding import EncodedPairs, encode_pairs
from seq2seq_jax.data.pipeline import make_batch
from seq2seq_jax.data.plan import BatchPlan, Bucket
from seq2seq_jax.data.sources import load_pairs
from seq2seq_jax.text.tokenizer import Tokenizers
from seq2seq_jax.training.flops import useful_flops
from tools.benchmarks.peers.processes import Peer
from tools.benchmarks.peers.systems import SIZES, SYSTEMS, started
from tools.benchmarks.side_by_side import Options, model_of
from tools.benchmarks.training import LEARNING_RATE
from tools.log import log

SIZE = "small"
# Tokens of a step, padding included: as many as 8 rows of the longest source and target have.
TOKENS = 8 * (512 + 64)
WAYS = {
    "padded": BatchConfig(tokens=TOKENS, multiple=1),
    "4 buckets": BatchConfig(tokens=TOKENS, multiple=1, buckets=4),
    "8 buckets": BatchConfig(tokens=TOKENS, multiple=1, buckets=8),
    "packed": BatchConfig(tokens=TOKENS, multiple=1, packing=True),
}


@dataclass(frozen=True)
class Result:
    """An epoch with one way to make batches.

    Attributes:
      shapes: the number of batches of each shape. times: seconds of the steps of each shape after the first.
      tokens: source and target tokens without padding. flops: of all steps.
    """

    way: str
    shapes: Mapping[Bucket, int]
    times: Mapping[Bucket, tuple[float, ...]]
    tokens: int
    flops: float

    @property
    def seconds(self) -> float:
        """The time of an epoch."""
        return sum(count * statistics.median(self.times[shape]) for shape, count in self.shapes.items())

    @property
    def fullness(self) -> float:
        """The share of an epoch's tokens that is not padding."""
        return self.tokens / sum(n * b.rows * (b.source_length + b.target_length) for b, n in self.shapes.items())


def read(data: str, pair: str) -> tuple[EncodedPairs, int]:
    """Examples of `data`, cut to 512 + 64 tokens of the tokenizers in the directory `pair`, and the source's pad id."""
    tokenizers = Tokenizers.load(pair, pair)
    settings = DataConfig(train=data, max_source_length=512, max_target_length=64)
    pairs = load_pairs(data, source_field=settings.source_field, target_field=settings.target_field)
    return encode_pairs(pairs, *tokenizers, settings, data), tokenizers.source.fill_id


def parse_ways(names: Sequence[str]) -> tuple[str, ...]:
    """The ways of these names; without names, all.

    Raises:
      ValueError: for an unknown name; names the nearest.
    """
    for name in names:
        check(name in WAYS, f"way {name!r} is unknown: {nearest(name, WAYS)}")
    return tuple(dict.fromkeys(names)) or tuple(WAYS)


def measure(
    encoded: EncodedPairs, pad: int, options: Options, ways: Sequence[str], size: str = SIZE
) -> Iterator[Result]:
    """Yields each way's result, measured with a pair of `SIZES[size]` with random weights.

    Raises:
      ValueError: if a token is outside that pair's vocabulary.
    """
    most = max(max(ids) for side in encoded.select(np.arange(len(encoded))) for ids in side)
    check(
        most < SIZES[size].vocab,
        f"the data holds the token {most}, and {size} has {SIZES[size].vocab}; give tokenizers of fewer",
    )
    common = (size, options.device, options.environments, options.in_place)
    setting = {"learning_rate": LEARNING_RATE, "config": dict(options.config)}
    with started([SYSTEMS["ours"]], *common, work="train", **setting) as peers:
        for way in ways:
            yield _result(way, WAYS[way], encoded, pad, peers["ours"], options.repeats, size)


def _result(
    way: str, settings: BatchConfig, encoded: EncodedPairs, pad: int, ours: Peer, repeats: int, size: str
) -> Result:
    plan = BatchPlan(encoded.source_lengths, encoded.target_lengths, settings, seed=0)
    epoch = [plan[t] for t in range(plan.batches_per_epoch)]
    shapes, times = Counter(bucket for bucket, _ in epoch), {}
    for bucket in shapes:
        examples = next(examples for shape, examples in epoch if shape == bucket)
        arrays = make_batch(encoded, bucket, examples, pad, packed=plan.packed)
        request = {"kind": "train", "arrays": {name: array.tolist() for name, array in arrays.items()}}
        answers = [ours.ask(request)["seconds"] for _ in range(1 + repeats)]
        times[bucket] = tuple(answers[1:])
        log(f"{way} {tuple(vars(bucket).values())}: {statistics.median(times[bucket]):.2f} s a step")
    model = model_of(SIZES[size])
    flops = sum(n * useful_flops(model, None, b.rows, b.source_length, b.target_length) for b, n in shapes.items())
    return Result(way, shapes, times, sum(plan.tokens), flops)


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a line for each way, compared with the first."""
    lines = ["| way | shapes | steps | full | seconds an epoch | tokens/s | first / this | of its FLOPs |"]
    lines.append("|---" * 8 + "|")
    for r in results:
        first = results[0]
        cells = [r.way, len(r.shapes), sum(r.shapes.values()), f"{100 * r.fullness:.0f} %", f"{r.seconds:.0f}"]
        cells += [f"{r.tokens / r.seconds:.0f}", f"{first.seconds / r.seconds:.2f}", f"{first.flops / r.flops:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "full: tokens that are not padding; tokens/s: those; an epoch's time is that of its steps, by shape."]
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """A result as a line of --output."""
    shapes = [
        {**vars(bucket), "steps": count, "times": list(result.times[bucket])} for bucket, count in result.shapes.items()
    ]
    return {
        "way": result.way,
        "seconds": result.seconds,
        "tokens": result.tokens,
        "flops": result.flops,
        "shapes": shapes,
    }
