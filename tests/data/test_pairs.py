"""Pairs, the batch plan, batches, prefetching."""

import gzip
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data.pipeline import encode_pairs, make_batch, prefetch
from seq2seq_jax.data.plan import batch_indices, batch_plan
from seq2seq_jax.data.sources import Pair, read_pairs

FIELDS = {"source_field": "document", "target_field": "summary"}


def test_shipped_pairs():
    train, validation = (read_pairs(f"debian-synopsis:{s}", **FIELDS) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (12_000, 400)
    assert not {p.source for p in train} & {p.source for p in validation}
    assert all(120 <= len(p.source) <= 700 and p.target for p in train)
    assert read_pairs("debian-synopsis:train", **FIELDS, limit=3) == train[:3]


def test_files(tmp_path):
    rows = [{"document": "a b", "summary": "c"}, {"document": "ä", "summary": "d", "more": 1}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = [Pair("a b", "c"), Pair("ä", "d")]
    assert read_pairs(tmp_path / "a.jsonl", **FIELDS) == read_pairs(tmp_path / "a.jsonl.gz", **FIELDS) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no examples"),
        (
            '{"document": "a", "summary": "b"}\n{"document": "a"}\n',
            "line 2: there is no field 'summary', only 'document'",
        ),
        ("{oops\n", "line 1: no valid JSON"),
        ("[1]\n", "line 1: not a JSON object"),
        ('{"document": 3, "summary": "b"}\n', "line 1: field 'document' is int, not text"),
    ],
)
def test_bad_rows(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "bad.jsonl", **FIELDS)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'debian-synopsis:train'"):
        read_pairs("debian-synopsis:trian", **FIELDS)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"is no \.jsonl"):
        read_pairs(tmp_path / "a.txt", **FIELDS)


@given(n=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_plan(n, batch, seed, epoch):
    if n < batch:
        with pytest.raises(ValueError, match=f"there are {n} training examples and batch_size is {batch}"):
            batch_plan(n, batch, seed=seed, epoch=epoch)
        return
    plan = batch_plan(n, batch, seed=seed, epoch=epoch)
    assert plan.shape == (n // batch, batch) and len(set(plan.ravel())) == plan.size
    assert plan.min() >= 0 and plan.max() < n
    for row in range(len(plan)):
        step = epoch * len(plan) + row
        np.testing.assert_array_equal(batch_indices(step, n, batch, seed=seed), plan[row])


def test_plan_depends_on_seed_and_epoch():
    plans = [batch_plan(50, 5, seed=s, epoch=e).tobytes() for s in (0, 1) for e in (0, 1)]
    batch_plan.cache_clear()
    assert plans == [batch_plan(50, 5, seed=s, epoch=e).tobytes() for s in (0, 1) for e in (0, 1)]
    assert len(set(plans)) == 4


class Words:
    """A tokenizer of words by length, with or without a template of special tokens."""

    end_id, pad_token_id = 99, 0

    def __init__(self, template):
        self.template = template

    def encode(self, texts, *, max_length=None, add_special_tokens=True):
        rows = [[len(word) for word in text.split()] for text in texts]
        if self.template and add_special_tokens:
            rows = [[98, *row[: None if max_length is None else max_length - 2], 99] for row in rows]
        return [row[:max_length] for row in rows]


@pytest.mark.parametrize("template", [True, False])
def test_batches(template):
    words = Words(template)
    pairs = [Pair("a bb ccc", "dddd"), Pair("a " * 9, "b " * 9)]
    encoded = encode_pairs(pairs, words, words, max_source_length=6, max_target_length=4)
    assert len(encoded) == 2 and encoded.truncated_sources == encoded.truncated_targets == 1
    batch = make_batch(encoded, np.array([1, 0]), source_pad_id=0, source_length=6, target_length=4)
    source = [98, 1, 2, 3, 99, 0] if template else [1, 2, 3, 0, 0, 0]
    assert batch["input_ids"][1].tolist() == source
    assert batch["attention_mask"].sum(1).tolist() == [6, 5 if template else 3]
    # No start token in the labels: the shift brings it. The end token stays, also where a text is cut.
    assert batch["labels"].tolist() == [[1, 1, 1, 99], [4, 99, -100, -100]]


def test_no_end_token():
    words = Words(True)
    words.end_id = None
    with pytest.raises(ValueError, match="no sep or eos token"):
        encode_pairs([Pair("a", "b")], words, words, max_source_length=6, max_target_length=4)


def test_prefetch():
    assert list(prefetch(iter(range(20)))) == list(range(20))

    def broken():
        yield 1
        raise KeyError("lost")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)
    threads = threading.active_count()
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()
    assert threading.active_count() == threads, "the thread outlives its consumer"
