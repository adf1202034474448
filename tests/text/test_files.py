"""Text files of every kind and compression: read as they were meant, or the fault named with its line."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seq2seq_jax.text.files import read_records, text_lines


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def texts_of(path, *fields, **options):
    return [record.texts for record in read_records(path, fields, **options)]


def table(rows, delimiter, **options) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, **options).writerows(rows)
    return out.getvalue().encode()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(texts, texts), max_size=6), ending=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_round_trip(tmp_path, rows, ending, data):
    """Any text, through each kind and compression, and again from any record on."""
    compression = data.draw(st.sampled_from(list(COMPRESS)))
    mark = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    ascii = data.draw(st.booleans())
    named = [("x", "a.b", "c"), *((1, a, b) for a, b in rows)]
    objects = [json.dumps({"x": [1], "a": {"b": a}, "c": b}, ensure_ascii=ascii) for a, b in rows]
    contents = {
        "t.csv": table(named, ",", lineterminator=ending),
        "t.tsv": table(named, "\t", lineterminator=ending),
        "t.jsonl": "".join(line + ending for line in objects).encode(),
    }
    for name, content in contents.items():
        path = tmp_path / (name + compression)
        path.write_bytes(COMPRESS[compression](mark + content))
        found = list(read_records(path, ["a.b", "c"]))
        assert [record.texts for record in found] == rows, name
        for i, record in enumerate(found):
            assert texts_of(path, "a.b", "c", start=record.place) == rows[i:]
    columns = {"a": pa.array([{"b": a, "z": 1} for a, _ in rows], pa.struct({"b": pa.string(), "z": pa.int8()}))}
    pa.parquet.write_table(
        pa.table({**columns, "c": pa.array([b for _, b in rows], pa.string())}),
        tmp_path / "t.parquet",
        row_group_size=2,
    )
    assert texts_of(tmp_path / "t.parquet", "a.b", "c") == rows
    for record in read_records(tmp_path / "t.parquet", ["c"]):
        assert texts_of(tmp_path / "t.parquet", "a.b", "c", start=record.place) == rows[record.place.position :]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=9)))
def test_round_trip_of_lines(tmp_path, lines):
    for compression, compress in COMPRESS.items():
        for ending in ("\n", "\r\n"):
            content = "".join(line + ending for line in lines).encode()
            if not content.startswith(b"\xef\xbb\xbf"):
                (tmp_path / f"t.de{compression}").write_bytes(compress(content))
                assert texts_of(tmp_path / f"t.de{compression}") == [(line,) for line in lines]
    assert list(text_lines(io.BytesIO("a\u2028\rb\r\n\nc".encode()), "x")) == ["a\u2028\rb", "", "c"]


@pytest.mark.parametrize("text", ["1", "007", "True", "1.50", "2020-01-01", "NA", "null", "nan", "", "1e5", " x "])
@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_cells_are_texts(tmp_path, text, suffix, delimiter, quoting):
    (tmp_path / f"t{suffix}").write_bytes(table([("x", "t"), ("a", text), ("b", "c")], delimiter, quoting=quoting))
    assert texts_of(tmp_path / f"t{suffix}", "t") == [(text,), ("c",)]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_text_types_of_arrow(tmp_path, kind):
    """Beside columns of other types, which are not read."""
    values = ["ä", "b", "ä"]
    column = pa.array(values).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)
    other = pa.array([None, datetime.date(2020, 1, 1), None])
    nested = pa.StructArray.from_arrays([column, other], ["de", "en"])
    written = pa.table({"t": column, "o": other, "n": nested, "n.en": values})
    pa.parquet.write_table(written, tmp_path / "t.parquet")
    assert texts_of(tmp_path / "t.parquet", "t", "n.de", "n.en") == [(v, v, v) for v in values]
    with pytest.raises(ValueError, match=r"field 'o' is date32\[day\], not text"):
        texts_of(tmp_path / "t.parquet", "o")
    with pytest.raises(ValueError, match=r"there is no field 'n.fr', only 'n.de', 'n.en'"):
        texts_of(tmp_path / "t.parquet", "n.fr")
    with pytest.raises(ValueError, match=r"field 'n' is an object of 'de', 'en', not text"):
        texts_of(tmp_path / "t.parquet", "n")


def test_fields_of_objects(tmp_path):
    rows = [{"a": {"b": {"c": "x"}}, "a.b": {"c": 3}}, {"a.b.c": "y", "a": None, "big": 0}, {"a": {"b.c": "z"}}]
    content = "\n\n".join(map(json.dumps, rows)).replace('"big": 0', '"big": ' + "9" * 5000)
    (tmp_path / "t.jsonl").write_text(content + "\n \n")
    found = list(read_records(tmp_path / "t.jsonl", ["a.b.c"]))
    assert [record.texts for record in found] == [("x",), ("y",), ("z",)]
    assert [record.place.line for record in found] == [1, 3, 5]


LINE = '{"t": "a", "n": {"m": "b"}}\n'


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "t.jsonl",
            (LINE + '{"t": "caf\xe9"}\n').encode("latin-1"),
            r"t.jsonl, line 2: not UTF-8 .* write the file in",
        ),
        ("t.csv", "x,t\n1,a\n2,caf\xe9\n".encode("latin-1"), "t.csv, line 3: not UTF-8"),
        ("t.tsv", "t\nx\n".encode("utf-16"), "t.tsv, line 1: not UTF-8 but UTF-16"),
        ("t.jsonl", LINE.encode("utf-16-le"), "line 1: not UTF-8 but UTF-16"),
        ("t.jsonl", LINE.encode("utf-16-be"), "line 1: not UTF-8 but UTF-16"),
        ("t.jsonl", LINE + '{"t": "\\ud83d"}\n', r"line 2: field 't' holds half a character, \\ud83d"),
        ("t.jsonl", LINE + "\n" + '{"t": null}\n', r"line 3: field 't' is empty \(null\), not text"),
        ("t.jsonl", '{"t": 3}\n', "line 1: field 't' is int, not text; write a text in quotes"),
        ("t.jsonl", '{"t": 3.5}\n', "line 1: field 't' is float"),
        ("t.jsonl", '{"t": ["a"]}\n', "line 1: field 't' is list"),
        ("t.jsonl", "[" * 100_000 + "\n", "line 1: no valid JSON"),
        ("t.jsonl", '{"t": "a\u2028', "line 1: no valid JSON"),
        ("t.jsonl", '"t"\n', "line 1: not a JSON object"),
        ("t.csv", "x,t\n\n1,a\n\n2\n", "line 5: 1 cell, and the first line has 2 cells"),
        ("t.csv", 'x,t\n"1\n\n",a\n2,b,c\n', "line 5: 3 cells, and the first line has 2 cells; .* what holds a comma"),
        ("t.csv", 'x,t\n1,a\n"2,b\n', r"line 3: no valid CSV \(a quote that opens in this row is never closed"),
        ("t.csv", 'x,t\n1,"a" b\n', r"line 2: no valid CSV"),
        ("t.csv", "x,t\r1,a\r", r"line 1: no valid CSV \(new-line character seen in unquoted field\)"),
        ("t.csv", "t,t\n1,a\n", "line 1: field 't' stands there 2 times"),
        ("t.csv", "x,u\n1,a\n", "line 1: there is no field 't', only 'x', 'u'; give another field"),
        ("t.jsonl", '{"u": "a"}\n', "line 1: there is no field 't', only 'u'"),
        ("t.parquet", "nonsense", "t.parquet cannot be read as Parquet"),
        ("t.json", "[]", r"t.json is no .jsonl, .csv, .tsv or .parquet file"),
        ("t.txt", "a", r"t.txt is no .jsonl"),
    ],
)
def test_faults_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        texts_of(tmp_path / name, "t")


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.txt"])
def test_archive_that_is_cut_or_none(tmp_path, compression, name):
    path, field = tmp_path / (name + compression), [] if name == "t.txt" else ["t"]
    body = (
        "".join(json.dumps({"t": str(i**9)}) + "\n" for i in range(9000)) if "json" in name else "t\n" + "ab\n" * 9000
    )
    whole = COMPRESS[compression](body.encode())
    for content in (whole[: len(whole) // 2], whole[:-9], b"no archive at all, but more than a few bytes"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}, line \d+: the archive is cut short or damaged"):
            texts_of(path, *field)


def test_bad_parquet_values(tmp_path):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"t": ["a", None], "n": [{"m": "a"}, None]}), path)
    for field in ("t", "n.m"):
        with pytest.raises(ValueError, match=rf"t.parquet, example 2: field '{field}' holds no text"):
            texts_of(path, field)
    half = pa.array([b"a", b"\xe9"]).view(pa.string())
    pa.parquet.write_table(pa.table({"t": half}), path)
    with pytest.raises(ValueError, match=r"t.parquet, example 2: field 't' is not UTF-8"):
        texts_of(path, "t")
    with pytest.raises(ValueError, match=r"t.parquet has fields; say which one"):
        texts_of(path)
    with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
        texts_of(tmp_path / "none.parquet", "t")
    (tmp_path / "t.parquet.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="decompress the file"):
        texts_of(tmp_path / "t.parquet.gz", "t")


def test_a_cell_of_many_characters(tmp_path):
    text = "word, " * 100_000
    (tmp_path / "t.csv").write_bytes(table([("t",), (text,)], ","))
    (tmp_path / "T.JSONL").write_text(json.dumps({"t": text}))
    assert texts_of(tmp_path / "t.csv", "t") == texts_of(tmp_path / "T.JSONL", "t") == [(text,)]
