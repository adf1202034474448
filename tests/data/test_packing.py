"""Which examples share a row, and the batches that come of it."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.config import BatchConfig
from seq2seq_jax.data.packing import WINDOW, pack
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.data.sources import load_pairs

lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=60)


def test_room_is_filled_on_both_sides():
    # After (6, 6) comes not (4, 1), which fills one side, but (3, 3), and then (1, 1) fills both.
    source, target = np.array([1, 4, 6, 3]), np.array([1, 1, 6, 3])
    assert pack(source, target, 10, 10, np.arange(4)).tolist() == [[2, 3, 0], [1, -1, -1]]
    assert pack(source, target, 6, 6, np.arange(4)).tolist() == [[2, -1], [1, 0], [3, -1]]


@given(lengths, st.integers(0, 30), st.integers(0, 30), st.integers(1, 5), st.booleans(), st.integers(0, 9))
def test_plan(pairs, more_source, more_target, rows, budget, seed):
    source, target = np.array(pairs).T
    room = max(1, source.max()) + more_source, target.max() + more_target
    size = {"tokens": rows * int(sum(room)), "multiple": 1} if budget else {"size": rows}
    settings = BatchConfig(packing=True, pack_source_length=int(room[0]), pack_target_length=int(room[1]), **size)
    plan = BatchPlan(source, target, settings, seed=seed)
    (bucket,), count = plan.buckets, plan.batches_per_epoch
    assert (bucket.rows, bucket.source_length, bucket.target_length) == (rows, *room)
    for epoch in (0, 1):
        planned = [plan[t][1] for t in range(epoch * count, (epoch + 1) * count)]
        assert all(len(examples) == rows for examples in planned)
        held = np.concatenate(planned)
        assert sorted(held[held >= 0]) == list(range(len(pairs))), "every example once in each epoch"
        for lengths, most in zip((source, target), room):
            assert np.where(held >= 0, lengths[held], 0).sum(1).max() <= most
        assert ((held >= 0).any(1).sum() + rows - 1) // rows == count, "empty rows are in the last batch only"
    again, t = BatchPlan(source, target, settings, seed=seed), 2 * count + seed % count
    assert again[t][1].tolist() == plan[t][1].tolist(), "t alone says what batch t is"


def test_neighbours_change_from_epoch_to_epoch():
    rng = np.random.default_rng(0)
    source, target = rng.integers(1, 9, 400), rng.integers(1, 5, 400)
    settings = BatchConfig(size=4, packing=True, pack_source_length=16, pack_target_length=8)
    plan = BatchPlan(source, target, settings, seed=0)

    def neighbours(epoch):
        count = plan.batches_per_epoch
        rows = np.concatenate([plan[t][1] for t in range(epoch * count, (epoch + 1) * count)])
        return {tuple(sorted(row[row >= 0])) for row in rows if (row >= 0).any()}

    assert len(neighbours(0) & neighbours(1)) < 0.2 * len(neighbours(0))
    assert plan[10**9][1].shape == plan[0][1].shape, "no epoch needs those before it"
    other = BatchPlan(source, target, settings, seed=1)
    assert other[0][1].tolist() != plan[0][1].tolist()


def test_little_is_wasted_on_real_texts():
    """Of the tighter side less than 5 %, in rows as long as the longest source and in longer ones."""
    pairs = load_pairs("debian-synopsis:train", source_field="document", target_field="summary")
    source, target = (np.array([len(text.split()) + 2 for text in pairs[name]]) for name in ("source", "target"))
    for room in ((None, None), (256, 64)):
        settings = BatchConfig(size=1, packing=True, pack_source_length=room[0], pack_target_length=room[1])
        plan = BatchPlan(source, target, settings, seed=0)
        full = np.array(plan.tokens) / plan.padded_tokens
        assert len(source) > 4 * WINDOW and full.max() > 0.95, full


def test_settings_that_do_not_fit():
    source, target = np.array([8, 20]), np.array([3, 5])
    for side, longest in (("source", 20), ("target", 5)):
        settings = BatchConfig(packing=True, **{f"pack_{side}_length": longest - 1})
        with pytest.raises(ValueError, match=rf"batch\.pack_{side}_length is {longest - 1} and the longest {side} has"
                           rf" {longest} tokens; give at least {longest}"):  # fmt: skip
            BatchPlan(source, target, settings, seed=0)
    with pytest.raises(ValueError, match=r"batch\.buckets is 4, and packed batches have one shape"):
        BatchConfig(packing=True, buckets=4)
    with pytest.raises(ValueError, match=r"batch\.pack_target_length is 9, and nothing is packed"):
        BatchConfig(pack_target_length=9)
    with pytest.raises(ValueError, match=r"batch\.pack_source_length is 0; give a whole number from 1 up"):
        BatchConfig(packing=True, pack_source_length=0)
    with pytest.raises(ValueError, match=r"batch\.tokens 50 is too small .* rows of 24 \+ 8 tokens; give at least 256"):
        BatchPlan(source, target, BatchConfig(packing=True, tokens=50), seed=0)


def test_packed_batches():
    sources, targets = [[5, 6], [7], [8, 9, 10]], [[11], [12, 13], [14]]
    encoded = SimpleNamespace(
        source_lengths=np.array([2, 1, 3]),
        target_lengths=np.array([1, 2, 1]),
        select=lambda chosen: ([sources[i] for i in chosen], [targets[i] for i in chosen]),
    )
    settings = BatchConfig(size=3, packing=True, pack_source_length=4, pack_target_length=3)
    plan = BatchPlan(encoded.source_lengths, encoded.target_lengths, settings, seed=0)
    (batch,) = batches(encoded, plan, 0, 1, source_pad_id=99)
    rows = {tuple(row): {name: array[i].tolist() for name, array in batch.arrays.items()}
            for i, row in enumerate(batch.arrays["input_ids"].tolist())}  # fmt: skip
    assert batch.bucket.rows == 3 and batch.tokens == 10
    assert rows[5, 6, 99, 99] == {
        "input_ids": [5, 6, 99, 99], "attention_mask": [1, 1, 0, 0], "labels": [11, -100, -100],
        "encoder_pack_ids": [1, 1, 0, 0], "decoder_pack_ids": [1, 0, 0],
    }  # fmt: skip
    shared = rows[7, 8, 9, 10] if (7, 8, 9, 10) in rows else rows[8, 9, 10, 7]
    first = shared["input_ids"][0] == 7
    assert shared["attention_mask"] == [1] * 4
    assert shared["encoder_pack_ids"] == ([1, 2, 2, 2] if first else [1, 1, 1, 2])
    assert shared["labels"] == ([12, 13, 14] if first else [14, 12, 13])
    assert shared["decoder_pack_ids"] == ([1, 1, 2] if first else [1, 2, 2])
    empty = rows[99, 99, 99, 99]
    assert empty["labels"] == [-100] * 3 and not any(empty["encoder_pack_ids"] + empty["decoder_pack_ids"])
    (half,) = batches(encoded, plan, 0, 1, source_pad_id=99, local_rows=lambda rows: np.arange(rows)[1:])
    for name, array in batch.arrays.items():
        np.testing.assert_array_equal(half.arrays[name], array[1:])
