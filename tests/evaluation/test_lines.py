import json

import pytest

from seq2seq_jax.evaluation.lines import Lines, one_line, windows


def all_of(lines):
    return [lines.read(number) for number in range(len(lines.offsets))]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_text_file(tmp_path, ending):
    texts = ["a", "", " ü€\u2028b ", "d\t", ""]
    path = tmp_path / "in.txt"
    path.write_bytes("\r\n".join(texts).encode() + ending.encode() if ending else "\n".join([*texts, "e"]).encode())
    expected = texts if ending else [*texts, "e"]
    for window in (1, 2, 5, 9):
        lines = Lines.scan(path, window=window)
        assert lines.count == len(expected)
        assert all_of(lines) == list(windows(expected, window))
        assert [lines.size(i) for i in range(len(lines.offsets))] == [len(w) for w in windows(expected, window)]


def test_fingerprint_and_empty_file(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x\ny\n")
    b.write_text("x\nz\n")
    assert Lines.scan(a, window=1).fingerprint == Lines.scan(a, window=2).fingerprint
    assert Lines.scan(a, window=1).fingerprint != Lines.scan(b, window=1).fingerprint
    b.write_text("")
    assert all_of(Lines.scan(b, window=3)) == [] and Lines.scan(b, window=3).count == 0


def test_json_lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"a\n{i}"}) + "\n" for i in range(3)))
    assert all_of(Lines.scan(path, window=2, field="text")) == [["a\n0", "a\n1"], ["a\n2"]]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"text": "a"}\n{"text": 3}\n', r"in.jsonl, line 2: no text under 'text', only 'text'; give"),
        (b'{"other": "a"}\n', r"line 1: no text under 'text', only 'other'"),
        (b"[1]\n", r"line 1: no text under 'text', only list"),
        (b'{"text": "a"}\n\n', r"line 2: no valid JSON"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: not UTF-8"),
    ],
)
def test_bad_line_is_found_before_anything_is_decoded(tmp_path, content, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Lines.scan(path, window=1, field="text")


def test_one_line():
    assert one_line("a\nb\r\nc\u2028d\x0be") == "a b c d e"
