"""Csv tables stay as they were written, and a broken row costs no other."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabee_fast.errors import InputError
from pabee_fast.tables import records as tables_records
from pabee_fast.tables.open import open_table
from tests.tables.cases import SUFFIXES, column_of, convert, errors_of, read_raw, texts_of


def test_csv_values_stay_as_they_were_written(tmp_path: Path) -> None:
    content = b'id,text,x\n007,NA,1.50\n08,null,\n9,,NaN\n1e3,12,"true"\n,"a\r\nb""c"", d",-0\n'
    table = read_raw(tmp_path / "in.csv", content)
    assert table.schema == pa.schema([(name, pa.string()) for name in ("id", "text", "x")])
    assert texts_of(table) == ["NA", "null", "", "12", 'a\r\nb"c", d']
    output = convert(table, tmp_path / "out.csv").read_bytes()
    assert output == (
        b"id,text,x,label,exit_layer\n007,NA,1.50,even,0\n08,null,,odd,1\n9,,NaN,even,2\n1e3,12,true,odd,3\n"
        b',"a\r\nb""c"", d",-0,even,4\n'
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_csv_reads_every_line_end_with_or_without_a_last_one(tmp_path: Path, end: bytes) -> None:
    for last in (b"", end, end + end):
        assert texts_of(read_raw(tmp_path / "in.csv", end.join([b"text,n", b"a,1", b"b,2"]) + last)) == ["a", "b"]


def test_a_byte_order_mark_is_no_part_of_the_first_column_name(tmp_path: Path) -> None:
    assert texts_of(read_raw(tmp_path / "in.csv", b"\xef\xbb\xbftext\na\n")) == ["a"]
    assert texts_of(read_raw(tmp_path / "in.jsonl", b'\xef\xbb\xbf{"text": "a"}\n')) == ["a"]


def test_a_csv_row_with_the_wrong_number_of_fields_is_a_row_with_an_error(tmp_path: Path) -> None:
    table = read_raw(tmp_path / "in.csv", b"id,text,x\n1,a,x\n2,b\n3,c,x,tail\n4,d,x\n5\n", chunk_rows=2)
    assert texts_of(table) == ["a", None, None, "d", None]
    assert column_of(table, "id") == ["1", "2", "3", "4", "5"]
    assert column_of(table, "text") == ["a", "b", "c", "d", None]
    errors = errors_of(table)
    assert errors[0] is None and errors[3] is None
    assert errors[1] == "line 3 has 2 fields where the header has 3"
    assert errors[2] == "line 4 has 4 fields where the header has 3; beyond them: 'tail'"
    assert errors[4] == "line 6 has 1 fields where the header has 3"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('2,"never closed', "unexpected end of data"),
        ('2,"closed" too early', "expected after"),
        ('2,"he said "hi" twice"', "expected after"),
    ],
)
def test_a_csv_line_that_does_not_parse_costs_no_other_row(tmp_path: Path, broken: str, reason: str) -> None:
    table = read_raw(tmp_path / "in.csv", f"id,text\n1,a\n{broken}\n3,c\n4,d\n".encode())
    assert texts_of(table) == ["a", None, "c", "d"]
    error = errors_of(table)[1]
    assert error is not None and error.startswith("line 3 is not valid csv") and reason in error
    assert column_of(table, "id") == ["1", None, "3", "4"]


def test_a_stray_quote_is_an_error_even_where_a_later_quote_seems_to_close_it(tmp_path: Path) -> None:
    table = read_raw(tmp_path / "in.csv", b'id,text\n1,"stray\n2,b\n3,"good, text"\n4,d\n')
    assert texts_of(table) == [None, "b", "good, text", "d"]


def test_an_unclosed_quote_is_given_up_after_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_records, "ROW_SIZE", 2000)
    rows = [f"{row},text" for row in range(500)]
    table = read_raw(tmp_path / "in.csv", "\n".join(["id,text", '"stray,', *rows]).encode())
    assert texts_of(table) == [None, *["text"] * 500]
    with pytest.raises(InputError, match=r"line 2 is longer than 2000 bytes"):
        list(read_raw(tmp_path / "in.csv", b"text\n" + b"x" * 3000))


def test_csv_line_numbers_count_the_lines_inside_quotes(tmp_path: Path) -> None:
    table = read_raw(tmp_path / "in.csv", b'text,n\n"a\nb\nc",1\n\nlone\n')
    assert errors_of(table) == [None, "line 6 has 1 fields where the header has 2"]


def test_duplicate_column_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than one column is named 'x'"):
        read_raw(tmp_path / "in.csv", b"x,text,x\n1,a,2\n")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"more than one column is named 'text'"):
        open_table(tmp_path / "in.parquet", ["text"])


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_a_csv_without_a_header_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"is empty; its first line must name the columns"):
        read_raw(tmp_path / "in.csv", content)


def test_a_csv_header_that_does_not_parse_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"header does not parse: line 1 is not valid csv"):
        read_raw(tmp_path / "in.csv", b'"text\na\n')
    with pytest.raises(InputError, match=r"header is not UTF-8"):
        read_raw(tmp_path / "in.csv", b"text,caf\xe9\na,b\n")


def test_bytes_that_are_not_utf8_give_their_row_an_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    for name, content in {
        "in.csv": b"text,x\ncaf\xe9,1\nok,2\nok,\xff\nok,4\n",
        "in.jsonl": b'{"text": "caf\xe9", "x": "1"}\n{"text": "ok", "x": "2"}\n'
        b'{"text": "ok", "x": "\xff"}\n{"text": "ok", "x": "4"}\n',
    }.items():
        table = read_raw(tmp_path / name, content)
        assert texts_of(table) == [None, "ok", None, "ok"]
        assert column_of(table, "text") == ["caf\ufffd", "ok", "ok", "ok"]
        assert column_of(table, "x") == ["1", "2", "\ufffd", "4"]
        first, second, third, fourth = errors_of(table)
        assert second is None and fourth is None
        assert first is not None and third is not None
        assert "bytes that are not UTF-8" in first and "bytes that are not UTF-8" in third
        for suffix in SUFFIXES:
            output = convert(table, tmp_path / f"out{suffix}", overwrite=True)
            assert texts_of(open_table(output, ["text"])) == ["caf\ufffd", "ok", "ok", "ok"]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_strings_that_are_not_utf8_give_their_row_an_error(tmp_path: Path, kind: str) -> None:
    raw = [b"ok", b"caf\xe9", b"fine"]
    if kind == "large_string":
        texts = pa.Array.from_buffers(pa.large_string(), 3, pa.array(raw, pa.large_binary()).buffers())
    else:
        texts = pa.Array.from_buffers(pa.string(), 3, pa.array(raw, pa.binary()).buffers())
    if kind == "dictionary":
        texts = texts.dictionary_encode()
    nested = pa.ListArray.from_arrays(
        [0, 0, 0, 1], pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    )
    pq.write_table(pa.table({"text": texts, "nested": nested}), tmp_path / "in.parquet")
    table = open_table(tmp_path / "in.parquet", ["text"])
    (chunk,) = table
    assert chunk.texts == [("ok",), (None,), (None,)]
    assert chunk.errors == [
        None,
        "column 'text' holds bytes that are not UTF-8",
        "column 'nested' holds bytes that are not UTF-8",
    ]
    assert chunk.batch.to_pylist() == [
        {"text": "ok", "nested": []},
        {"text": "caf\ufffd", "nested": []},
        {"text": "fine", "nested": None},
    ]
    for suffix in SUFFIXES:
        assert convert(table, tmp_path / f"out{suffix}").exists()


def test_utf16_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is UTF-16; give --encoding utf-16"):
        read_raw(tmp_path / "in.csv", "text\na\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"is UTF-16; convert it to UTF-8 first"):
        read_raw(tmp_path / "in.jsonl", '{"text": "a"}'.encode("utf-16"))
