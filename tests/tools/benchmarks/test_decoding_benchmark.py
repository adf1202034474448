"""The benchmark of decoding: what rows mean, the floor's arithmetic, the table, and ours as a peer."""

import sys

import numpy as np
import pytest

from tools.benchmarks import decoding, side_by_side
from tools.benchmarks.decoding import HEADLINES, Result, Row, measure, parse_rows, table
from tools.benchmarks.peers.harness import count_tokens
from tools.benchmarks.peers.processes import Peer, environment
from tools.benchmarks.peers.systems import SIZES, SYSTEMS, Size, parse_systems
from tools.benchmarks.side_by_side import Options, Rates

TINY = Size(layers=2, hidden=4, heads=2, intermediate=8, vocab=10, positions=16)
ROW = Row("tiny", batch=1, beams=2, source=3, steps=2)


def rows_of(*names, device="cpu"):
    return parse_rows(names, device, "runs/pair")


def test_rows():
    shape = Row("small", 1, 2, 30, 4)
    assert rows_of("small:1x2x30x4", "headline", "base:4x4x128x64") == (shape, *HEADLINES["cpu"])  # none twice
    assert [row.batch for row in rows_of("headline", device="gpu")] == [8, 8]
    assert [str(row) for row in rows_of("corpus")] == ["runs/pair:16x4x1000xend"]
    everything = rows_of("all")
    assert len(everything) == 24 + 4 + 1 and set(HEADLINES["cpu"]) < set(everything)
    assert len({(row.batch, row.beams, row.source, row.steps) for row in rows_of("grid")}) == 12


@pytest.mark.parametrize(
    "name, says",
    [
        ("headlines", "did you mean 'headline'"),
        ("bsae:4x4x128x64", "did you mean 'base'"),
        ("base:4x4x128", "base:4x4x128x64"),
        ("base:4x4x0x64", "base:4x4x128x64"),
        ("base:4x4x513x64", "512 positions"),
        ("base:4x4x128x512", "512 steps"),
    ],
)
def test_bad_rows(name, says):
    with pytest.raises(ValueError, match=says) as error:
        rows_of(name)
    assert repr(name) in str(error.value)


def test_systems():
    assert [s.name for s in parse_systems(["torch", "ours", "torch"], "cpu")] == ["torch", "ours"]
    assert "torch-compiled" in [s.name for s in parse_systems([], "gpu")]
    assert {s.name for s in parse_systems([], "cpu")} == set(SYSTEMS) - {"torch-compiled"}
    with pytest.raises(ValueError, match="'trch' is unknown: did you mean 'torch'"):
        parse_systems(["trch"], "cpu")
    with pytest.raises(ValueError, match="'flax' does not decode on device 'gpu'; there: ours"):
        parse_systems(["flax"], "gpu")
    with pytest.raises(ValueError, match="device 'gpus' is unknown: did you mean 'gpu'"):
        Options(device="gpus")


def test_who_takes_what():
    def takers(row):
        return [name for name, system in SYSTEMS.items() if decoding._takes(system, row)]

    assert takers(ROW) == list(SYSTEMS)
    assert takers(*rows_of("corpus")) == ["ours", "ours-int8", "torch"]
    assert takers(rows_of("growth")[0]) == ["ours", "ours-int8"]


def test_floor():
    # Encoder, a layer: 3 tokens through four 4 x 4 and two 4 x 8 kernels, 2 FLOPs each; scores and sums over 3 x 3.
    # Then keys and values of the 3 states for each decoder layer.
    layer = 2 * 3 * (4 * 16 + 2 * 32) + 2 * 2 * 9 * 4
    assert decoding.source_flops(TINY, ROW) == 2 * (layer + 2 * 3 * 2 * 16) == 2208
    # A step, a layer: 2 beams through six 4 x 4 and two 4 x 8 kernels; attention over 1 and 3 positions. Then the head.
    flops = 2 * (2 * 2 * (6 * 16 + 2 * 32) + 2 * 2 * 2 * (1 + 3) * 4) + 2 * 2 * (16 + 40)
    # Kernels; keys and values that 2 beams wrote, and those of 3 source positions, once.
    numbers = 2 * (6 * 16 + 2 * 32) + 16 + 40 + 2 * (2 * 2 * 1 * 4 + 2 * 3 * 4)
    assert decoding.step_work(TINY, ROW, 1, width=4) == (flops, 4 * numbers) == (1760, 1824)
    assert decoding.step_work(TINY, ROW, 2, width=2) == (1824, 2 * 488)
    by_memory = decoding.floor_seconds(TINY, ROW, Rates(flops=1e6, bandwidth=10.0), width=4)
    assert by_memory == pytest.approx(2208 / 1e6 + (1824 + 4 * 488) / 10)
    by_arithmetic = decoding.floor_seconds(TINY, ROW, Rates(flops=10.0, bandwidth=1e6), width=4)
    assert by_arithmetic == pytest.approx((2208 + 1760 + 1824) / 10)


def result(system, seconds, row=ROW, **fields):
    common = {"first": 3 * seconds, "tokens": row.batch * row.steps, "peak": 5_000_000, "peak_since": "call"}
    return Result(system, row, (seconds, 100.0, seconds / 2), **{**common, **fields})


def test_table():
    ours = result("ours", 0.5, outputs=[[1, 2], [3, 4]], floor=0.1)
    torch = result("torch", 1.5, outputs=[[1, 2], [3, 5]])
    other = result("ctranslate2", 0.25)
    lines = table([ours, torch, other]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:5])]
    assert {len(row) for row in cells} == {len(decoding.HEADER)}
    assert cells[1] == ["tiny", "ours", *"1232", "0.5", "4", "5", "1.0", "3.00", "20 %", "1 of 2"]
    assert cells[2][-3:] == ["1.00", "–", "2 of 2"]
    assert cells[3][-3:] == ["6.00", "–", "–"]
    assert "since the start" not in lines[-1]
    corpus = Row("runs/pair", 16, 4, 1000, 0)
    text = table([result("ours", 10.0, corpus, tokens=30000, peak_since="start")])
    assert "| ours | 16 | 4 | 1000 texts | to the end | 10 | 3000 |" in text
    assert "since the start, not of this row alone: ours" in text
    assert decoding.as_json(ours, [ours, torch])["reference_seconds"] == 1.5


def test_growth():
    rows = [Row("tiny", 1, 2, 3, steps, growth=True) for steps in (4, 2, 8)]
    grown = [result("ours", seconds, row, floor=seconds / 2) for row, seconds in zip(rows, (0.5, 0.25, 2.0))]
    assert decoding.growth(grown)[-1] == (
        "ours, a step of 1 texts: 2 to 4: 125.0 ms (floor 62.5); 4 to 8: 375.0 ms (floor 187.5)."
    )


def test_count_tokens():
    assert count_tokens(np.array([[1, 5, 0, 7, 0], [1, 5, 0, 0, 0]]), pad=0) == 2 * 3
    assert count_tokens(np.array([[1, 0, 0]]), pad=0) == 0


def test_environment(tmp_path):
    """One that is there is used; ours is the running one."""
    python = tmp_path / "flax" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert environment("flax", tmp_path) == python
    assert str(environment("ours", tmp_path)) == str(environment("flax", tmp_path, in_place=True)) == sys.executable


def test_peer_that_ends():
    with pytest.raises(RuntimeError, match="nobody ended with 0; leave it out"):
        Peer("nobody", environment("ours", None), "harness.py", {"device": "cpu"})


@pytest.mark.slow
def test_ours(tmp_path, monkeypatch):
    """The whole way: a checkpoint is written, a process of its own decodes it, all tokens are there."""
    monkeypatch.setitem(SIZES, "tiny", Size(1, 16, 2, 32, vocab=1200, positions=16))
    monkeypatch.setitem(side_by_side.RATE_WIDTHS, "cpu", 128)
    rows = rows_of("tiny:2x2x8x4")
    ((found,),) = measure(rows, parse_systems(["ours"], "cpu"), Options(repeats=1, environments=tmp_path))
    assert found.tokens == 8 and found.seconds > 0 and found.first > found.seconds
    assert found.peak_since in ("call", "start") and found.peak > 1e7
    assert found.rates.flops > 1e7 and found.rates.bandwidth > 1e7 and 0 < found.floor < found.seconds
    assert len(found.outputs) == 2 and "jax" in found.versions
    assert "| tiny | ours | 2 | 2 | 8 | 4 |" in table([found])
