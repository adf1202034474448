"""Text pairs from files, directories and the shipped sets; bad ones are named with file and line."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seq2seq_jax.data import sources
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
    (tmp_path / "a.tsv").write_text("summary\tdocument\nc\ta b\nNA\tä\n", encoding="utf-8")
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"):
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
    with pytest.raises(FileNotFoundError, match="the split 'test' of a data set"):
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
        ("document,summary\na\n", "bad.csv, line 2: 1 cell, and the first line has 2 cells"),
        ("text,summary\na,b\n", "there is no field 'document', only 'text', 'summary'"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "bad.csv", **FIELDS)


def test_digits_for_long_and_then_text(tmp_path):
    """More rows than any reader looks at to tell a column's type; twice, the second time from the cache."""
    (tmp_path / "a.csv").write_text("document,summary\n" + "".join(f"w {i},{i}\n" for i in range(2100)) + "z,a b\n")
    found = [load_pairs(tmp_path / "a.csv", **FIELDS) for _ in range(2)]
    assert found[0]["target"][:] == [*map(str, range(2100)), "a b"]
    assert found[0].cache_files == found[1].cache_files and found[0]._fingerprint == found[1]._fingerprint
    (tmp_path / "a.csv").write_text("document,summary\nx,007\n")
    assert load_pairs(tmp_path / "a.csv", **FIELDS)[:] == {"source": ["x"], "target": ["007"]}


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops")
    for _ in range(2):
        with pytest.raises(ValueError, match="line 2: no valid JSON"):
            load_pairs(tmp_path / "a.jsonl", **FIELDS)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
@pytest.mark.parametrize("through_datasets", [False, True])
def test_dotted_fields_of_a_directory(tmp_path, kind, through_datasets, monkeypatch):
    """Read by the reader of files, and as `datasets` hands out what is on the hub."""
    (tmp_path / "set").mkdir()
    texts = {"de": pa.array(["ä", "ö"], getattr(pa, kind)()), "en": pa.array(["a", "o"])}
    nested = pa.StructArray.from_arrays(list(texts.values()), names=list(texts))
    pq.write_table(pa.table({"translation": nested, "id": [1, 2]}), tmp_path / "set" / "train.parquet")
    if through_datasets:
        monkeypatch.setattr(sources, "_files_of_split", lambda *arguments: None)
    fields = {"source_field": "translation.de", "target_field": "translation.en"}
    assert load_pairs(f"{tmp_path / 'set'}:train", **fields)[:] == {"source": ["ä", "ö"], "target": ["a", "o"]}
    same = load_pairs(f"{tmp_path / 'set'}:train", source_field="translation.en", target_field="translation.en")
    assert same[:] == {"source": ["a", "o"], "target": ["a", "o"]}
    with pytest.raises(ValueError, match="field 'id' is int64, not text"):
        load_pairs(f"{tmp_path / 'set'}:train", source_field="translation.de", target_field="id")
    with pytest.raises(
        ValueError, match=r"there is no field 'translation.fr', only 'translation.de', 'translation.en'"
    ):
        load_pairs(f"{tmp_path / 'set'}:train", source_field="translation.fr", target_field="id")


def test_tables_of_a_directory_are_texts(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("document,summary\n1,007\n2,True\n")
    assert load_pairs(f"{tmp_path}:train", **FIELDS)[:] == {"source": ["1", "2"], "target": ["007", "True"]}


def test_bad_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'debian-synopsis:train'"):
        load_pairs("debian-synopsis:trian", **FIELDS)
    with pytest.raises(FileNotFoundError, match=r"there is no data file 'none\.jsonl'"):
        load_pairs("none.jsonl", **FIELDS)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"is no \.jsonl"):
        load_pairs(tmp_path / "a.txt", **FIELDS)
