"""A run on packed batches is a run on the same examples."""

from types import SimpleNamespace

import numpy as np
import pytest

from seq2seq_jax.config import BatchConfig
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.families.registry import from_hf
from seq2seq_jax.training import loop
from seq2seq_jax.training.loop import TrainingInterrupted, train
from tests.training import toy

# Rows are longer than the 16 positions of the toy BERT.
PACKED = {"packing": True, "pack_source_length": 28, "pack_target_length": 10}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def run(work, name, stop_at=None, **batch):
    config = toy.config(work, batch=batch, num_steps=3, dropout=0.0, evaluation={"decode_limit": 1})
    if stop_at is not None:
        with pytest.raises(TrainingInterrupted):
            train(config, work / name, stop_at=stop_at)
    train(config, work / name)
    return work / name


@pytest.mark.slow
def test_packed_run_is_the_unpacked_one(work, capsys):
    """Where a batch holds all examples, each step's loss says so."""
    apart = run(work, "apart", size=40)
    said = capsys.readouterr().out
    assert "3 steps are 3.00 epochs; batches are examples x (source + target tokens): 40 x (14 + 4);" in said
    packed = run(work, "packed", size=20, **PACKED)
    said = capsys.readouterr().out
    assert "batches are rows of packed examples x (source + target tokens): 20 x (28 + 10);" in said
    assert "3 steps are 3.00 epochs" in said, "the batch held all examples"
    for name, tolerance in (("train/loss", 1e-5), ("eval/loss", 1e-5), ("train/grad_norm", 1e-4)):
        found, expected = toy.records(packed, name), toy.records(apart, name)
        assert list(found) == list(expected)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=tolerance, err_msg=name)
    assert toy.records(packed, "train/tokens") == toy.records(apart, "train/tokens")


@pytest.mark.slow
def test_stopped_in_the_middle_of_an_epoch(work):
    whole, stopped = run(work, "whole", size=4, **PACKED), run(work, "stopped", stop_at=2, size=4, **PACKED)
    assert toy.records(whole) == toy.records(stopped)
    assert len(set(toy.records(whole, "train/tokens").values())) > 1, "batches hold as many tokens as come"


def test_plan_text_says_how_full_batches_are():
    lengths = np.array([4, 4, 8, 8]), np.array([2, 2, 4, 4])
    for batch, full in (
        ({"size": 2}, "75 % of these tokens are no padding (75 % of the source's, 75 % of the target's)"),
        ({"size": 3, "buckets": 1}, "50 % of these"),
        ({"size": 1, "packing": True, "pack_source_length": 24, "pack_target_length": 24},
         "75 % of these tokens are no padding (100 % of the source's, 50 % of the target's)"),
    ):  # fmt: skip
        assert full in loop._plan_text(BatchPlan(*lengths, BatchConfig(**batch), seed=0), 4)


def test_example_longer_than_the_model_takes():
    """A row may be longer, an example not; the compiled step could not tell."""
    bert = from_hf({"model_type": "bert", "max_position_embeddings": 16}, "decoder")
    bird = from_hf({"model_type": "big_bird", "block_size": 1, "num_random_blocks": 1}, "encoder")
    pair, packing = SimpleNamespace(encoder=bird, decoder=bert), BatchConfig(packing=True, pack_source_length=40)
    plan = lambda *longest: BatchPlan(*(np.array([n, 4]) for n in longest), packing, seed=0)
    loop._check_lengths(plan(7, 16), pair)
    padded = BatchPlan(np.array([7]), np.array([12]), BatchConfig(length_multiple=24), seed=0)
    with pytest.raises(ValueError, match="a sequence of 24 tokens is longer than the 16 positions of this bert"):
        loop._check_lengths(padded, SimpleNamespace(encoder=bert, decoder=bert))
    with pytest.raises(ValueError, match="a sequence of 8 tokens is longer than 7: beyond it BigBird attends block-sp"):
        loop._check_lengths(plan(8, 16), pair)
    with pytest.raises(ValueError, match="a sequence of 17 tokens is longer than the 16 positions of this bert"):
        loop._check_lengths(plan(7, 17), pair)
