"""Encoding, the batch plan, batches."""

from dataclasses import astuple

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.config import BatchConfig, DataConfig
from seq2seq_jax.data.encoding import encode_pairs
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.data.plan import BatchPlan, bucket_shapes


class Words:
    """A tokenizer of words by their length, with or without [CLS] (98) and [SEP] (99)."""

    end_id, truncation_side = 99, "right"

    def __init__(self, template=True):
        self.template, self.backend = template, self

    def to_str(self):
        return f"words {self.template}"

    def encode_batch(self, texts, *, max_length=None, add_special_tokens=True):
        rows = [[len(word) for word in text.split()] for text in texts]
        if self.template and add_special_tokens:
            rows = [[98, *row[: None if max_length is None else max_length - 2], 99] for row in rows]
        return [row[:max_length] for row in rows]

    def encode_and_count(self, texts, *, max_length, add_special_tokens=True, **_):
        ids = self.encode_batch(texts, max_length=max_length, add_special_tokens=add_special_tokens)
        return ids, [len(text.split()) for text in texts]


def encode(pairs, template=True, tokenizer=None, **settings):
    texts = datasets.Dataset.from_dict({"source": [p[0] for p in pairs], "target": [p[1] for p in pairs]})
    words = tokenizer or Words(template)
    limits = {"max_source_length": 6, "max_target_length": 4, **settings}
    return encode_pairs(texts, words, words, DataConfig(train="x", **limits), "these")


PAIRS = [("a bb ccc", "dddd"), ("a " * 9, "b " * 9), ("", "x"), ("a", " ")]


@pytest.mark.parametrize("template", [True, False])
def test_encoding(template):
    encoded = encode(PAIRS, template)
    assert encoded.kept.tolist() == [0, 1] and len(encoded) == 2
    counts = encoded.counts
    assert (counts.kept, counts.cut_sources, counts.cut_targets, counts.dropped_short, counts.dropped_long) == (
        2,
        1,
        1,
        2,
        0,
    )
    assert "1 sources and 1 targets cut; 2 examples dropped as too short or empty" in str(counts)
    sources, targets = encoded.select(np.array([1, 0]))
    assert sources == ([[98, 1, 1, 1, 1, 99], [98, 1, 2, 3, 99]] if template else [[1] * 6, [1, 2, 3]])
    # No start token in the labels: the shift brings it. The end token stays, also where a text is cut.
    assert targets == [[1, 1, 1, 99], [4, 99]]
    assert encoded.source_lengths.tolist() == ([5, 6] if template else [3, 6])
    assert encoded.target_lengths.tolist() == [2, 4]
    assert encoded.texts(np.array([0])) == (["a bb ccc"], ["dddd"])


def test_filters_and_prefixes():
    assert encode(PAIRS, long_examples="drop").counts.dropped_long == 1
    assert encode(PAIRS, min_source_length=0, min_target_length=0).kept.tolist() == [0, 1, 2, 3]
    assert encode(PAIRS, min_target_length=2).kept.tolist() == [1]
    prefixed = encode(PAIRS[:1], source_prefix="sum: ", target_prefix="so ").select(np.array([0]))
    assert prefixed == ([[98, 4, 1, 2, 3, 99]], [[2, 4, 99]])
    with pytest.raises(ValueError, match="these: all 1 texts under 'summary' are empty"):
        encode(PAIRS[3:])
    with pytest.raises(ValueError, match="none of 1 examples is left: 1 are too long"):
        encode(PAIRS[1:2], long_examples="drop")


def test_fingerprint_is_of_the_ids():
    prints = [encode(pairs).fingerprint for pairs in (PAIRS, PAIRS, PAIRS[:1], [("a bb cccc", "dddd"), *PAIRS[1:]])]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_no_end_token():
    words = Words()
    words.end_id = None
    with pytest.raises(ValueError, match="no sep or eos token"):
        encode(PAIRS, tokenizer=words)


lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=60)


@given(lengths, st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 9))
def test_plan(pairs, buckets, rows, budget, seed):
    source, target = np.array(pairs).T
    settings = BatchConfig(tokens=64 * 9 + rows * 10, multiple=4, buckets=buckets) if budget else None
    settings = settings or BatchConfig(size=rows, buckets=buckets)
    plan = BatchPlan(source, target, settings, seed=seed)
    count = plan.batches_per_epoch
    assert len(plan.buckets) <= buckets and sum(b.rows for b, _ in map(plan.__getitem__, range(count))) >= len(pairs)
    for epoch in (0, 1):
        seen = []
        for bucket, examples in (plan[t] for t in range(epoch * count, (epoch + 1) * count)):
            filled = examples[examples >= 0]
            assert len(examples) == bucket.rows and len(filled)
            assert source[filled].max() <= bucket.source_length and target[filled].max() <= bucket.target_length
            assert not budget or bucket.rows * (bucket.source_length + bucket.target_length) <= settings.tokens
            seen += filled.tolist()
        assert sorted(seen) == list(range(len(pairs))), "every example once in each epoch"
    again = BatchPlan(source, target, settings, seed=seed)
    t = 2 * count + seed % count
    assert again[t][0] == plan[t][0] and again[t][1].tolist() == plan[t][1].tolist(), "t alone says what batch t is"


def test_plan_depends_on_seed_and_epoch():
    ones = np.ones(50, int)
    orders = set()
    for seed in (0, 1):
        plan = BatchPlan(ones, ones, BatchConfig(size=5), seed=seed)
        assert plan.batches_per_epoch == 10
        orders |= {str(plan[epoch * 10][1].tolist()) for epoch in (0, 1)}
    assert len(orders) == 4


def test_buckets_pad_least():
    source = np.array([8] * 10 + [16] + [64] * 10)
    assert bucket_shapes(source, np.full(21, 8), 2) == [(8, 8), (64, 8)]
    assert bucket_shapes(source, np.full(21, 8), 1) == [(64, 8)]
    assert bucket_shapes(source, np.full(21, 8), 9) == [(8, 8), (16, 8), (64, 8)]
    plan = BatchPlan(np.array([3, 9, 13]), np.array([2, 5, 11]), BatchConfig(size=1), seed=0)
    assert (plan.buckets[0].source_length, plan.buckets[0].target_length) == (13, 11), "none beyond the longest"
    settings = BatchConfig(size=1, buckets=2, length_multiple=16)
    plan = BatchPlan(np.array([3, 9, 40]), np.array([2, 5, 11]), settings, seed=0)
    assert [b[1:] for b in map(astuple, plan.buckets)] == [(16, 16), (48, 16)], "a kernel takes no others"
    packed = BatchPlan(np.array([3, 9]), np.array([2, 5]), BatchConfig(packing=True, length_multiple=16), seed=0)
    assert astuple(packed.buckets[0])[1:] == (16, 16)
    with pytest.raises(ValueError, match=r"batch\.tokens 500 is too small .* give at least 576"):
        BatchPlan(source, np.full(21, 8), BatchConfig(tokens=500), seed=0)


def test_batches_are_read_ahead_and_cut_to_a_host():
    encoded = encode(PAIRS[:2] * 3)
    plan = BatchPlan(encoded.source_lengths, encoded.target_lengths, BatchConfig(size=4), seed=0)
    whole = list(batches(encoded, plan, 0, 4, source_pad_id=7))
    assert [batch.bucket.rows for batch in whole] == [4] * 4
    partial = next(b for b in whole if (b.arrays["attention_mask"].sum(1) == 0).any())
    empty = np.flatnonzero(partial.arrays["attention_mask"].sum(1) == 0)
    assert (partial.arrays["labels"][empty] == -100).all() and (partial.arrays["input_ids"][empty] == 7).all()
    full = whole[0] if whole[0] is not partial else whole[1]
    assert full.tokens == full.arrays["attention_mask"].sum() + (full.arrays["labels"] != -100).sum()
    later = list(batches(encoded, plan, 2, 4, source_pad_id=7))
    half = list(batches(encoded, plan, 2, 4, source_pad_id=7, local_rows=lambda rows: np.arange(rows)[1::2]))
    for a, b, c in zip(whole[2:], later, half):
        for name in a.arrays:
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])
            np.testing.assert_array_equal(a.arrays[name][1::2], c.arrays[name])
