import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seq2seq_jax.inference.text_windows import TextWindows, one_line, windows


def all_of(lines):
    return [lines.read(number) for number in range(len(lines.offsets))]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_text_file(tmp_path, ending):
    texts = ["a", "", " ü€\u2028b ", "d\t", ""]
    path = tmp_path / "in.txt"
    path.write_bytes("\r\n".join(texts).encode() + ending.encode() if ending else "\n".join([*texts, "e"]).encode())
    expected = texts if ending else [*texts, "e"]
    for window in (1, 2, 5, 9):
        lines = TextWindows.scan(path, window=window)
        assert lines.count == len(expected)
        assert all_of(lines) == list(windows(expected, window))
        assert [lines.size(i) for i in range(len(lines.offsets))] == [len(w) for w in windows(expected, window)]


def test_fingerprint_and_empty_file(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x\ny\n")
    b.write_text("x\nz\n")
    assert TextWindows.scan(a, window=1).fingerprint == TextWindows.scan(a, window=2).fingerprint
    assert TextWindows.scan(a, window=1).fingerprint != TextWindows.scan(b, window=1).fingerprint
    b.write_text("")
    assert all_of(TextWindows.scan(b, window=3)) == [] and TextWindows.scan(b, window=3).count == 0


def test_json_lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"a\n{i}"}) + "\n" for i in range(3)) + "\n \n")
    assert all_of(TextWindows.scan(path, window=2, field="text")) == [["a\n0", "a\n1"], ["a\n2"]]


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt.gz", "a.csv.xz", "a.jsonl.zst"]
)
def test_windows_in_any_order(tmp_path, name):
    """Of compressed files too, where there is only a way forward."""
    texts = [f"text {i}" if name.startswith("a.txt") else f"text\n{i}" for i in range(11)]
    kind = Path(name).suffixes[0]
    field, path = None if kind == ".txt" else "t", tmp_path / name
    if kind == ".parquet":
        pq.write_table(pa.table({"t": texts}), path, row_group_size=4)
    else:
        records = {
            ".txt": "\r\n".join(texts),
            ".jsonl": "\n".join(json.dumps({"t": text}) for text in texts),
            ".csv": "\n\n".join(["u,t", *(f'1,"{text}"' for text in texts)]),
            ".tsv": "\n".join(["t", *(f'"{text}"' for text in texts)]),
        }
        content = ("\ufeff" + records[kind]).encode()
        with pa.output_stream(path, compression=None if not name.endswith(".zst") else "zstd") as file:
            file.write({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(content))
    for window in (1, 4, 11, 20):
        lines = TextWindows.scan(path, window=window, field=field)
        expected = list(windows(texts, window))
        assert all_of(lines) == expected
        for number in (len(expected) - 1, 0, len(expected) // 2, len(expected) // 2, len(expected) - 1):
            assert lines.read(number) == expected[number]


def test_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")
    assert TextWindows.scan(tmp_path / "a.txt", window=9).read(0) == ["a", "\ufeffb"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"text": "a"}\n{"text": 3}\n', r"in.jsonl, line 2: field 'text' is int, not text; write"),
        (b'{"other": "a"}\n', r"line 1: there is no field 'text', only 'other'; give another field"),
        (b"[1]\n", r"line 1: not a JSON object"),
        (b'{"text": "a"}\n\n{"text": "b"}\n', r"line 2: blank, so that outputs would not stand in the lines of"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: not UTF-8"),
    ],
)
def test_bad_line_is_found_before_anything_is_decoded(tmp_path, content, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TextWindows.scan(path, window=1, field="text")


def test_one_line():
    assert one_line("a\nb\r\nc\u2028d\x0be") == "a b c d e"


def test_the_former_name_still_works():
    from seq2seq_jax.evaluation.lines import Lines

    assert Lines is TextWindows
