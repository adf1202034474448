"""Text pairs from files, directories and the shipped sets; bad ones are named with file and line."""

import gzip
import json

import datasets
import pytest

from seq2seq_jax.data.sources import load_pairs

FIELDS = {"source_field": "document", "target_field": "summary"}
ROWS = [{"document": "a b", "summary": "c"}, {"document": "ä", "summary": "NA"}]
TEXTS = {"source": ["a b", "ä"], "target": ["c", "NA"]}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_shipped_pairs():
    train, validation = (load_pairs(f"debian-synopsis:{s}", **FIELDS) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (12_000, 400)
    assert not set(train["source"]) & set(validation["source"])
    assert all(120 <= len(text) <= 700 for text in train["source"]) and all(train["target"])
    assert load_pairs("debian-synopsis:train", **FIELDS, limit=3)[:] == train[:3]


def test_files(tmp_path):
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.csv").write_text("summary,document\nc,a b\nNA,ä\n", encoding="utf-8")
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"):
        assert load_pairs(tmp_path / name, **FIELDS)[:] == TEXTS, name
    same = load_pairs(tmp_path / "a.csv", source_field="document", target_field="document")
    assert same[:] == {"source": TEXTS["source"], "target": TEXTS["source"]}


def test_directory_with_splits(tmp_path):
    """As the hub lays it out."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        (tmp_path / "set" / "data" / f"{split}.jsonl").write_text(
            json.dumps({"document": split, "summary": "x"}) + "\n"
        )
    assert load_pairs(f"{tmp_path / 'set'}:validation", **FIELDS)["source"][:] == ["validation"]
    with pytest.raises(FileNotFoundError, match="no split 'test' of a data set"):
        load_pairs(f"{tmp_path / 'set'}:test", **FIELDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no examples"),
        ("\n\n", "holds no examples"),
        (
            '{"document": "a", "summary": "b"}\n\n{"document": "a"}\n',
            "line 3: there is no field 'summary', only 'document'",
        ),
        ('{"text": "a"}\n', "line 1: there is no field 'document', only 'text'; set data.source_field"),
        ('{"document": "a", "summary": "b"}\n{oops\n', "line 2: no valid JSON"),
        ("[1]\n", "line 1: not a JSON object"),
        (
            '{"document": "a", "summary": "b"}\n{"document": 3, "summary": "b"}\n',
            "line 2: field 'document' is int, not text",
        ),
        ('{"document": "a", "summary": null}\n', r"line 1: field 'summary' is empty \(null\), not text"),
    ],
)
def test_bad_lines(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"bad\.jsonl.*" + message):
        load_pairs(tmp_path / "bad.jsonl", **FIELDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("document,summary\n", "holds no examples"),
        ("document,summary\na,1\n", "field 'summary' is int64, not text"),
        ("text,summary\na,b\n", "there is no field 'document', only 'text', 'summary'"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "bad.csv", **FIELDS)


def test_bad_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'debian-synopsis:train'"):
        load_pairs("debian-synopsis:trian", **FIELDS)
    with pytest.raises(FileNotFoundError, match=r"there is no data file 'none\.jsonl'"):
        load_pairs("none.jsonl", **FIELDS)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"is no \.jsonl"):
        load_pairs(tmp_path / "a.txt", **FIELDS)
