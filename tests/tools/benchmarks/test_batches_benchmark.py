"""Padding, buckets and packing side by side: the arithmetic, the table, and a whole measurement."""

import json

import numpy as np
import pytest

from seq2seq_jax.config import BatchConfig
from seq2seq_jax.data.plan import Bucket
from tools.benchmarks import batches
from tools.benchmarks.batches import Result, as_json, measure, table
from tools.benchmarks.peers.systems import SIZES, Size
from tools.benchmarks.side_by_side import Options

LONG, SHORT = Bucket(2, 20, 10), Bucket(6, 6, 4)


def test_table():
    padded = Result("padded", {LONG: 3}, {LONG: (2.0, 50.0, 1.0)}, 90, 6e9)
    buckets = Result("buckets", {LONG: 1, SHORT: 1}, {LONG: (2.0,), SHORT: (1.0,)}, 90, 4e9)
    assert padded.seconds == 6 and padded.fullness == pytest.approx(90 / (3 * 2 * 30))
    assert buckets.seconds == 3 and buckets.fullness == pytest.approx(90 / (2 * 30 + 6 * 10))
    lines = table([padded, buckets]).splitlines()
    assert lines[2] == "| padded | 1 | 3 | 50 % | 6 | 15 | 1.00 | 1.00 |"
    assert lines[3] == "| buckets | 2 | 2 | 75 % | 3 | 30 | 2.00 | 1.50 |"
    assert json.loads(json.dumps(as_json(buckets)))["shapes"][1]["steps"] == 1


def test_ways():
    assert batches.parse_ways(["packed", "padded"]) == ("packed", "padded") and len(batches.parse_ways([])) == 4
    with pytest.raises(ValueError, match="way 'pack' is unknown: did you mean 'packed'"):
        batches.parse_ways(["pack"])


class Encoded:
    """Examples of these lengths, all of the token 5; the last of 7 too."""

    source_lengths, target_lengths = np.array([2, 3, 4, 3, 2, 12, 2, 3]), np.array([2, 2, 3, 2, 2, 5, 2, 2])

    def __len__(self):
        return len(self.source_lengths)

    def select(self, examples):
        sides = (self.source_lengths, self.target_lengths)
        sources, targets = ([[5] * side[i] for i in examples] for side in sides)
        targets[-1][-1] = 7
        return sources, targets


@pytest.mark.slow
def test_measure(tmp_path, monkeypatch):
    """The whole way: a process that trains on the shapes of each plan."""
    ways = {"padded": {}, "packed": {"packing": True}}
    ways = {name: BatchConfig(tokens=64, multiple=1, **more) for name, more in ways.items()}
    monkeypatch.setattr(batches, "WAYS", ways)
    monkeypatch.setitem(SIZES, "tiny", Size(1, 16, 2, 32, vocab=40, positions=16))
    options = Options(repeats=1, environments=tmp_path)
    padded, packed = measure(Encoded(), 0, options, batches.parse_ways([]), size="tiny")
    assert padded.tokens == packed.tokens == 31 + 20
    assert packed.fullness > padded.fullness > 0 and sum(packed.shapes.values()) < sum(padded.shapes.values())
    assert padded.seconds > 0 and packed.seconds > 0 and padded.flops > packed.flops
    monkeypatch.setitem(SIZES, "tiny", Size(1, 16, 2, 32, vocab=7, positions=16))
    with pytest.raises(ValueError, match="the data holds the token 7, and tiny has 7"):
        next(measure(Encoded(), 0, options, ["padded"], size="tiny"))
