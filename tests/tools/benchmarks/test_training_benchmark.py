"""The benchmark of training: what rows mean, the floor's arithmetic, the table, and ours as a peer."""

import numpy as np
import pytest

from seq2seq_jax.pretrained.pair import from_encoder_decoder_configs
from seq2seq_jax.pretrained.saving import save_pretrained
from tools.benchmarks import side_by_side, training
from tools.benchmarks.peers.systems import SIZES, Size, parse_systems, started
from tools.benchmarks.side_by_side import Options, Rates
from tools.benchmarks.training import HEADLINES, Result, Row, measure, model_flops, parse_rows, table

TINY = Size(layers=2, hidden=4, heads=2, intermediate=8, vocab=10, positions=16)
ROW = Row("tiny", batch=2, source=3, target=2)


def test_rows():
    assert parse_rows(["small:1x30x4", "headline", "base:8x128x64"], "cpu") == (
        Row("small", 1, 30, 4),
        *HEADLINES["cpu"],
    )
    assert set(parse_rows(["all"], "gpu")) == {*HEADLINES["gpu"], *training.COST}


@pytest.mark.parametrize(
    "name, says",
    [
        ("headlines", "did you mean 'headline'"),
        ("bsae:4x128x64", "did you mean 'base'"),
        ("base:4x128", "base:8x128x64"),
        ("base:0x128x64", "base:8x128x64"),
        ("base:4x128x513", "512 positions"),
    ],
)
def test_bad_rows(name, says):
    with pytest.raises(ValueError, match=says) as error:
        parse_rows([name], "cpu")
    assert repr(name) in str(error.value)


def test_systems():
    assert [s.name for s in parse_systems([], "cpu", "train")] == ["ours", "torch", "torch-compiled", "flax"]
    assert [s.name for s in parse_systems([], "gpu", "train")] == ["ours", "torch", "torch-compiled"]
    with pytest.raises(ValueError, match="'ctranslate2' does not train on device 'cpu'; there: ours"):
        parse_systems(["ctranslate2"], "cpu", "train")


def test_turns(capsys):
    """A first call each, then three in a row."""

    class Peer:
        def __init__(self, name):
            self.name = name

        def ask(self, request):
            asked.append(self.name)
            return {"seconds": 1.0}

    asked = []
    answers = side_by_side.in_turn({name: Peer(name) for name in "ab"}, {}, Options(repeats=6, turn=3), "row")
    assert "".join(asked) == "ab" + "aaabbb" * 2 and {len(got) for got in answers.values()} == {7}
    with pytest.raises(ValueError, match="turn is 4, and does not divide repeats, 6"):
        Options(repeats=6, turn=4)


def test_floor():
    # A layer's encoder: 6 tokens through four 4 x 4 and two 4 x 8 kernels; scores and sums over 3 x 3, twice.
    encoder = 2 * 6 * (4 * 16 + 2 * 32) + 2 * 2 * 2 * 9 * 4
    # Its decoder: 4 tokens through six 4 x 4 and two 4 x 8; the source's keys and values; attention over 2 and 3.
    decoder = 2 * 4 * (6 * 16 + 2 * 32) + 2 * 6 * 2 * 16 + 2 * 2 * 2 * 2 * (2 + 3) * 4
    head = 2 * 4 * (16 + 40)
    assert model_flops(TINY, ROW) == 3 * (2 * (encoder + decoder) + head)


def result(system, seconds, **fields):
    common = {
        "first": 3.0,
        "losses": (4.0, 3.5),
        "peak": 5_000_000,
        "peak_since": "call",
        "rates": None,
        "versions": {},
    }
    return Result(system, ROW, (seconds, 100.0, seconds / 2), **{**common, **fields})


def test_table(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    ours = result("ours", 0.5, rates=Rates(flops=model_flops(TINY, ROW) / 0.25, bandwidth=1.0))
    lines = table([ours, result("torch", 1.5)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:4])]
    assert {len(row) for row in cells} == {len(training.HEADER)}
    flops = f"{model_flops(TINY, ROW) / 0.5 / 1e12:.3g}"
    assert cells[1] == ["tiny", "ours", *"232", "0.5", "20", flops, "50 %", "5", "2.5", "3.00", "2.00", "3.500"]
    assert cells[2][-3:] == ["1.00", "–", "3.500"]
    assert training.as_json(ours, [ours, result("torch", 1.5)])["reference_seconds"] == 1.5


@pytest.mark.slow
def test_ours(tmp_path, monkeypatch):
    """The whole way: a checkpoint is written, a process of its own trains it, the loss falls."""
    monkeypatch.setitem(SIZES, "tiny", Size(1, 16, 2, 32, vocab=1200, positions=16))
    monkeypatch.setitem(side_by_side.RATE_WIDTHS, "cpu", 128)
    options = Options(repeats=4, environments=tmp_path, config={"remat": "none"})
    ((found,),) = measure(parse_rows(["tiny:2x8x4"], "cpu"), parse_systems(["ours"], "cpu", "train"), options)
    assert found.first > found.seconds > 0 and len(found.losses) == 5 and found.losses[-1] < found.losses[0]
    assert 0 < found.floor < found.seconds and found.peak > 1e7 and "jax" in found.versions
    refused = Options(repeats=1, environments=tmp_path, config={"remat": "dot"})
    with pytest.raises(RuntimeError, match="remat 'dot' is unknown"):
        next(measure(parse_rows(["tiny:2x8x4"], "cpu"), parse_systems(["ours"], "cpu", "train"), refused))


@pytest.mark.slow
def test_torch_takes_the_same_steps(tmp_path):
    """AdamW, its decay and clipping, on the same checkpoint and batch: the losses of six steps, without dropout."""
    pytest.importorskip("transformers")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    side = {**Size(2, 16, 2, 32, vocab=1200, positions=16).bert, **still, "initializer_range": 0.3}
    save_pretrained(tmp_path, from_encoder_decoder_configs(side, side, decoder_start_token_id=1, pad_token_id=0))
    systems = parse_systems(["ours", "torch"], "cpu", "train")
    with started(systems, str(tmp_path), "cpu", tmp_path, True, work="train", learning_rate=1e-2) as peers:
        request = training._request(Row("small", 4, 8, 6))
        request["arrays"] = {name: (np.asarray(rows) % 1200).tolist() for name, rows in request["arrays"].items()}
        request["arrays"]["attention_mask"] = np.ones((4, 8), int).tolist()
        losses = {name: [peer.ask(request)["loss"] for _ in range(6)] for name, peer in peers.items()}
    assert losses["ours"][-1] < losses["ours"][0] - 1
    assert losses["ours"] == pytest.approx(losses["torch"], rel=1e-4)
