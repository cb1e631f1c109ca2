"""Tables keep every row in its place, lose no text, and appear only when they are whole."""

import csv
import json
import math
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pabee_fast.errors import InputError
from pabee_fast.scoring import tables_csv, tables_write
from pabee_fast.scoring.tables import Chunk, Table, check_names, check_output, open_table, table_format, write_table

SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]
RESULTS = pa.schema([("label", pa.string()), ("exit_layer", pa.int64())])
# String types whose slices hold on to the texts of the whole.
SHARING = [pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
# One of each kind of character that some format treats specially, beside any other.
TEXTS = st.text(
    st.one_of(st.sampled_from(list("\"',\t\n\r\0\\ \u2028\ufeff")), st.characters(exclude_categories=["Cs"]))
)
in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)


def results_of(chunk: Chunk) -> pa.RecordBatch:
    rows = chunk.batch.num_rows
    return pa.record_batch([["even", "odd"] * (rows // 2) + ["even"] * (rows % 2), range(rows)], schema=RESULTS)


def put(path: Path, texts: Sequence[str]) -> Path:
    """Write a table with the columns id and text, by other means than the code under test."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps({"id": row, "text": text}) + "\n" for row, text in enumerate(texts))
        path.write_text("".join(lines), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(["id", "text"])
            writer.writerows(enumerate(texts))
    return path


def convert(source: Table, path: Path, **options: object) -> Path:
    with write_table(path, source.schema, RESULTS, source=source.path, **options) as writer:  # type: ignore[arg-type]
        for chunk in source:
            writer.write(chunk, results_of(chunk))
    return path


def texts_of(table: Table) -> list[str | None]:
    return [text for chunk in table for (text,) in chunk.texts]


def errors_of(table: Table) -> list[str | None]:
    return [error for chunk in table for error in chunk.errors]


def column_of(table: Table, name: str) -> list[object]:
    return [value for chunk in table for value in chunk.batch.column(name).to_pylist()]


def read_raw(path: Path, content: bytes, columns: Sequence[str] = ("text",), **options: int) -> Table:
    path.write_bytes(content)
    return open_table(path, columns, **options)


# Round trips


@pytest.mark.parametrize("suffix_out", SUFFIXES)
@pytest.mark.parametrize("suffix_in", SUFFIXES)
@in_tmp_path
@given(texts=st.lists(TEXTS, max_size=8), chunk_rows=st.integers(1, 5))
def test_any_text_survives_reading_and_writing_in_order(
    tmp_path: Path, suffix_in: str, suffix_out: str, texts: list[str], chunk_rows: int
) -> None:
    table = open_table(put(tmp_path / f"in{suffix_in}", texts), ["text"], chunk_rows=chunk_rows)
    assert texts_of(table) == texts
    assert errors_of(table) == [None] * len(texts)
    scored = open_table(convert(table, tmp_path / f"out{suffix_out}", overwrite=True), ["text"], chunk_rows=chunk_rows)
    assert texts_of(scored) == texts
    assert [int(str(value)) for value in column_of(scored, "id")] == list(range(len(texts)))


@in_tmp_path
@given(texts=st.lists(TEXTS, max_size=8))
def test_a_csv_of_one_column_keeps_its_empty_texts(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    table = open_table(path, ["text"])
    assert texts_of(table) == texts
    with write_table(tmp_path / "out.csv", table.schema, pa.schema([]), overwrite=True) as writer:
        for chunk in table:
            writer.write(chunk, pa.table({"none": range(chunk.batch.num_rows)}).select([]).to_batches()[0])
    assert texts_of(open_table(tmp_path / "out.csv", ["text"])) == texts


@in_tmp_path
@given(numbers=st.lists(st.floats() | st.none(), min_size=1, max_size=8))
def test_numbers_written_as_json_are_read_back_exactly(tmp_path: Path, numbers: list[float | None]) -> None:
    values = pa.array(numbers, pa.float64())
    lists = pa.array([[number] for number in numbers], pa.list_(pa.float64()))
    pq.write_table(pa.table({"text": ["a"] * len(numbers), "x": values, "xs": lists}), tmp_path / "in.parquet")
    output = convert(open_table(tmp_path / "in.parquet", ["text"]), tmp_path / "out.jsonl", overwrite=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    wanted = [number if number is not None and math.isfinite(number) else None for number in numbers]
    assert [row["x"] for row in rows] == wanted
    assert [row["xs"] for row in rows] == [[number] for number in wanted]


@pytest.mark.parametrize("suffix_out", SUFFIXES)
@pytest.mark.parametrize("suffix_in", SUFFIXES)
def test_an_empty_table_gives_an_empty_table_with_all_columns(tmp_path: Path, suffix_in: str, suffix_out: str) -> None:
    table = open_table(put(tmp_path / f"in{suffix_in}", []), ["text"])
    assert list(table) == []
    output = convert(table, tmp_path / f"out{suffix_out}")
    if suffix_out == ".jsonl":
        assert output.read_bytes() == b""
    else:
        assert open_table(output, ["text"]).schema.names == [*table.schema.names, "label", "exit_layer"]
    assert texts_of(open_table(output, ["text"])) == []


def test_an_empty_json_lines_file_has_its_text_columns_as_strings(tmp_path: Path) -> None:
    table = read_raw(tmp_path / "in.jsonl", b"", ["premise", "hypothesis"])
    assert table.schema == pa.schema([("premise", pa.string()), ("hypothesis", pa.string())])
    assert table.rows == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_very_long_texts_and_nul_survive(tmp_path: Path, suffix: str) -> None:
    texts = ["x" * 3_000_000, "a\0b", "", "\n" * 20_000]
    table = open_table(put(tmp_path / f"in{suffix}", texts), ["text"])
    assert texts_of(table) == texts
    assert texts_of(open_table(convert(table, tmp_path / f"out{suffix}"), ["text"])) == texts


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pair_gives_two_texts_a_row_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    table = open_table(put(tmp_path / f"in{suffix}", ["a", "b"]), ["text", "text"])
    assert [pair for chunk in table for pair in chunk.texts] == [("a", "a"), ("b", "b")]
    table = read_raw(tmp_path / "pair.jsonl", b'{"a": "1", "b": "2"}\n{"a": "3", "b": null}\n', ["b", "a"])
    (chunk,) = table
    assert chunk.texts == [("2", "1"), (None, None)]
    assert chunk.errors == [None, "column 'b' is null or missing, not text"]


def test_reading_a_table_twice_gives_the_same_rows(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        table = open_table(put(tmp_path / f"in{suffix}", ["a", "b", "c"]), ["text"], chunk_rows=2)
        assert texts_of(table) == texts_of(table) == ["a", "b", "c"]


def test_rows_are_counted_where_the_format_knows_them(tmp_path: Path) -> None:
    rows = {suffix: open_table(put(tmp_path / f"in{suffix}", ["a", "b"]), ["text"]).rows for suffix in SUFFIXES}
    assert rows == {".csv": None, ".tsv": None, ".jsonl": 2, ".parquet": 2}


# csv


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
    monkeypatch.setattr(tables_csv, "ROW_SIZE", 2000)
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


# Bytes that are not UTF-8


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
    with pytest.raises(InputError, match=r"is UTF-16; convert it to UTF-8 first"):
        read_raw(tmp_path / "in.csv", "text\na\n".encode("utf-16"))


# JSON Lines


def test_broken_json_lines_are_rows_with_errors(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "n": 1}',
        '{"text": "b", "n": 2',
        '["text"]',
        "null",
        '{"text": "c"} {"text": "d"}',
        '{"n": 3}',
        '{"text": null}',
        '{"text": 5}',
        '{"text": "\\ud800", "n": 4}',
        '{"text": "\\ud83d\\ude00"}',
        '{"text": "x", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"text": "z", "n": ' + "9" * 5000 + "}",
    ]
    table = read_raw(tmp_path / "in.jsonl", "\n".join(lines).encode())
    assert texts_of(table) == ["a", *[None] * 8, "\U0001f600", None, None]
    assert table.rows == len(lines)
    assert column_of(table, "n") == [1, None, None, None, None, 3, None, None, 4, None, None, None]
    wanted = [
        None,
        "line 2 is not valid JSON",
        "line 3 is an array, not a JSON object",
        "line 4 is null, not a JSON object",
        "line 5 is not valid JSON: Extra data",
        "column 'text' is null or missing, not text",
        "column 'text' is null or missing, not text",
        "column 'text' is a number, not text",
        "line 9 holds half of a surrogate pair",
        None,
        "line 11 is not valid JSON",
        "line 12 is not valid JSON",
    ]
    for error, start in zip(errors_of(table), wanted, strict=True):
        assert (error is None) == (start is None)
        assert error is None or start is None or error.startswith(start)
    output = convert(table, tmp_path / "out.jsonl").read_text().splitlines()
    assert len(output) == len(lines)
    assert json.loads(output[1]) == {"text": None, "n": None, "label": "odd", "exit_layer": 1}
    for suffix in (".csv", ".parquet"):
        assert len(column_of(open_table(convert(table, tmp_path / f"out{suffix}"), ["text"]), "text")) == len(lines)


def test_blank_json_lines_are_no_rows(tmp_path: Path) -> None:
    table = read_raw(tmp_path / "in.jsonl", b'\n{"text": "a"}\r\n   \n{"text": "b"}')
    assert (table.rows, texts_of(table)) == (2, ["a", "b"])


def test_json_lines_output_keeps_each_object_as_it_was_written(tmp_path: Path) -> None:
    lines = [
        '{ "text":"a",  "n": 1.50, "nested": {"k": [1, "x", null, {"deep": 1e400}]} }',
        '{"text": "\\u00e9", "big": 123456789012345678901234567890, "n": "mixed"}',
        '{"n": 1, "n": 2, "text": "b"}',
        '{"late": NaN, "text": "c"}',
        "{}",
    ]
    table = read_raw(tmp_path / "in.jsonl", "\n".join(lines).encode())
    output = convert(table, tmp_path / "out.jsonl").read_text().splitlines()
    assert output == [
        lines[0][:-2].replace("{ ", "{") + ', "label": "even", "exit_layer": 0}',
        lines[1][:-1] + ', "label": "odd", "exit_layer": 1}',
        lines[2][:-1] + ', "label": "even", "exit_layer": 2}',
        lines[3][:-1] + ', "label": "odd", "exit_layer": 3}',
        '{"label": "even", "exit_layer": 4}',
    ]


def test_json_columns_are_the_union_of_all_keys_with_inferred_types(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "i": 1, "f": 1, "b": True, "l": [1], "s": {"x": 1}, "mixed": 1, "big": 2**70, "none": None},
        {"text": "b", "f": 2.5, "l": None, "s": {"y": ["z"]}, "mixed": "1", "e": {}, "edge": 2**53 + 1},
        {"text": "c", "late": "l", "l": [], "mixed": {"k": [1]}, "tags": [1, "x"], "edge": 0.5},
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    table = read_raw(tmp_path / "in.jsonl", content, chunk_rows=1)
    assert {field.name: field.type for field in table.schema} == {
        "text": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "l": pa.list_(pa.int64()),
        "s": pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))]),
        "mixed": pa.string(),
        "big": pa.string(),
        "none": pa.string(),
        "e": pa.string(),
        "edge": pa.string(),
        "late": pa.string(),
        "tags": pa.string(),
    }
    assert column_of(table, "mixed") == ["1", '"1"', '{"k": [1]}']
    assert column_of(table, "edge") == [None, "9007199254740993", "0.5"]
    assert column_of(table, "s") == [{"x": 1, "y": None}, {"x": None, "y": ["z"]}, None]
    written = pq.read_table(convert(table, tmp_path / "out.parquet"))
    assert written.schema.names == [*table.schema.names, "label", "exit_layer"]
    assert written.column("l").to_pylist() == [[1], None, []]
    assert texts_of(open_table(convert(table, tmp_path / "out.csv"), ["text"])) == ["a", "b", "c"]


def test_a_text_column_with_other_values_keeps_its_texts_unquoted(tmp_path: Path) -> None:
    table = read_raw(tmp_path / "in.jsonl", b'{"text": "a"}\n{"text": 5}\n{"text": ["b"]}\n')
    assert column_of(table, "text") == ["a", "5", '["b"]']
    assert texts_of(table) == ["a", None, None]


def test_data_used_as_json_keys_is_kept_as_json_text(tmp_path: Path) -> None:
    rows = [{"text": "a", "seen": {f"user{row}.{key}": 1 for key in range(50)}} for row in range(20)]
    table = read_raw(tmp_path / "in.jsonl", "\n".join(map(json.dumps, rows)).encode(), chunk_rows=3)
    assert table.schema.field("seen").type == pa.string()
    assert [json.loads(str(value)) for value in column_of(table, "seen")] == [row["seen"] for row in rows]
    deep = json.dumps({"text": "a", "x": json.loads("[" * 100 + "]" * 100)})
    assert read_raw(tmp_path / "deep.jsonl", deep.encode()).schema.field("x").type == pa.string()
    wide = "\n".join(json.dumps({"text": "a", f"key{row}": 1}) for row in range(5000))
    with pytest.raises(InputError, match=r"more than 4096 different keys"):
        read_raw(tmp_path / "wide.jsonl", wide.encode(), chunk_rows=100)


def test_a_json_array_in_a_json_lines_file_is_named_with_the_missing_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no column 'text'.*line 1 is an array, not a JSON object"):
        read_raw(tmp_path / "in.jsonl", b'[{"text": "a"}]\n')


# Parquet


def test_parquet_types_survive_to_parquet(tmp_path: Path) -> None:
    source = pa.table(
        {
            "text": pa.array(["a", "b", None], pa.large_string()),
            "when": pa.array([datetime(2024, 1, 2, tzinfo=UTC), None, None], pa.timestamp("ns", "UTC")),
            "nested": pa.array([{"k": [1, None]}, None, {"k": []}], pa.struct([("k", pa.list_(pa.int8()))])),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "price": pa.array([Decimal("1.20"), None, Decimal("3.00")]),
        }
    )
    pq.write_table(source, tmp_path / "in.parquet")
    table = open_table(tmp_path / "in.parquet", ["text"], chunk_rows=2)
    written = pq.read_table(convert(table, tmp_path / "out.parquet"))
    assert written.select(source.column_names).equals(source)
    assert written.schema.names == [*source.column_names, "label", "exit_layer"]
    assert errors_of(table) == [None, None, "column 'text' is null"]


def test_what_json_and_csv_lack_is_written_as_text(tmp_path: Path) -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    source = pa.table(
        {
            "text": ["a"],
            "when": pa.array([moment], pa.timestamp("ms", "UTC")),
            "price": [Decimal("1.20")],
            "small": pa.array([0.1], pa.float32()),
            "nested": [{"k": [1.0, None], "t": [moment.date()]}],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
            "bytes": [b"\xff"],
            "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
            "whole": [2.0],
            "flag": [True],
            "kind": pa.array(["x"]).dictionary_encode(),
        }
    )
    pq.write_table(source, tmp_path / "in.parquet")
    table = open_table(tmp_path / "in.parquet", ["text"])
    (line,) = convert(table, tmp_path / "out.jsonl").read_text().splitlines()
    assert line == (
        '{"text": "a", "when": "2024-01-02 03:04:05.000Z", "price": 1.20, "small": 0.1, '
        '"nested": {"k": [1.0, null], "t": ["2024-01-02"]}, "map": [{"key": "k", "value": 1}], "bytes": "/w==", '
        '"fixed": [1, 2], "whole": 2.0, "flag": true, "kind": "x", "label": "even", "exit_layer": 0}'
    )
    with convert(table, tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "text": "a",
        "when": "2024-01-02 03:04:05.000Z",
        "price": "1.20",
        "small": "0.1",
        "nested": '{"k": [1.0, null], "t": ["2024-01-02"]}',
        "map": '[{"key": "k", "value": 1}]',
        "bytes": "/w==",
        "fixed": "[1, 2]",
        "whole": "2.0",
        "flag": "true",
        "kind": "x",
        "label": "even",
        "exit_layer": "0",
    }


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), *SHARING], ids=str)
def test_every_kind_of_parquet_string_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["a", None, "", "a"]
    pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), tmp_path / "in.parquet")
    table = open_table(tmp_path / "in.parquet", ["text"])
    assert table.schema.field("text").type == kind
    assert texts_of(table) == texts
    assert texts_of(open_table(convert(table, tmp_path / "out.jsonl"), ["text"])) == texts


def test_a_parquet_text_column_of_another_type_is_an_error_on_every_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, None]}), tmp_path / "in.parquet")
    table = open_table(tmp_path / "in.parquet", ["text"])
    assert texts_of(table) == [None, None]
    assert errors_of(table) == ["column 'text' is of type int64, not text; convert it to strings"] * 2
    assert column_of(table, "text") == [1, None]


def test_parquet_metadata_that_would_hide_the_results_is_dropped(tmp_path: Path) -> None:
    source = pa.table({"text": ["a"]}).replace_schema_metadata({"huggingface": "{}", "mine": "kept"})
    pq.write_table(source, tmp_path / "in.parquet")
    written = pq.read_schema(convert(open_table(tmp_path / "in.parquet", ["text"]), tmp_path / "out.parquet"))
    assert written.metadata == {b"mine": b"kept"}


def test_a_damaged_parquet_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read as parquet"):
        read_raw(tmp_path / "in.parquet", b"not parquet")
    path = put(tmp_path / "in.parquet", [f"text {row}" for row in range(100)])
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    with pytest.raises(InputError, match=r"is damaged"):
        list(read_raw(path, bytes(content)))


# Opening


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_text_column_is_named_with_those_that_exist(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=r"has no column 'review', 'x'; its columns are 'id', 'text'"):
        open_table(put(tmp_path / f"in{suffix}", ["a"]), ["review", "x"])


@pytest.mark.parametrize("name", ["in.txt", "in", "in.csv.gz", "in.json"])
def test_an_unknown_suffix_names_the_supported_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text\n")
    wanted = r"names no table format; use one of \.csv, \.tsv, \.jsonl, \.ndjson, \.parquet"
    with pytest.raises(InputError, match=wanted):
        open_table(tmp_path / name, ["text"])
    with pytest.raises(InputError, match=wanted):
        check_output(tmp_path / name)


def test_a_suffix_counts_in_any_case() -> None:
    assert [table_format(name) for name in ("A.CSV", "a.NdJson", "a.Parquet")] == ["csv", "jsonl", "parquet"]


def test_what_is_no_readable_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        open_table(tmp_path / "absent.csv", ["text"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"is not a regular file"):
        open_table(tmp_path / "folder.csv", ["text"])


@pytest.mark.parametrize("columns", ["text", [], ["a", "b", "c"]])
def test_text_columns_must_be_one_or_two_names(tmp_path: Path, columns: Sequence[str]) -> None:
    with pytest.raises(InputError, match=r"must be a list of one or two column names"):
        open_table(put(tmp_path / "in.csv", ["a"]), columns)


def test_chunk_limits_below_one_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "in.csv", ["a"])
    for limits in ({"chunk_rows": 0}, {"chunk_bytes": 0}):
        with pytest.raises(InputError, match=r"must be at least 1"):
            open_table(path, ["text"], **limits)


# Memory


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_chunks_are_bounded_by_rows_and_by_bytes(tmp_path: Path, suffix: str) -> None:
    texts = ["x" * (20_000 if row % 50 == 25 else 300) for row in range(400)]
    path = put(tmp_path / f"in{suffix}", texts)
    for limits in ({"chunk_rows": 7}, {"chunk_bytes": 5_000}):
        chunks = list(open_table(path, ["text"], **limits))
        assert [text for chunk in chunks for (text,) in chunk.texts] == texts
        for chunk in chunks:
            size = sum(len(text or "") for (text,) in chunk.texts)
            assert len(chunk.texts) == chunk.batch.num_rows == len(chunk.errors) <= limits.get("chunk_rows", 400)
            assert size <= limits.get("chunk_bytes", 10**9) or len(chunk.texts) == 1
        assert len(chunks) < 150, "limits must not lead to chunks of single rows"


@pytest.mark.parametrize("kind", SHARING)
def test_texts_that_slices_share_do_not_make_chunks_of_single_rows(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array([f"{row:0>100}" for row in range(2000)]).cast(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    chunks = list(open_table(tmp_path / "in.parquet", ["text"], chunk_bytes=20_000))
    assert 2 <= len(chunks) <= 40


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_table(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(rows: int) -> int:
        texts = [os.urandom(4_000).hex() for _ in range(rows)]
        path = put(tmp_path / f"in{rows}{suffix}", texts)
        del texts
        arrow = 0
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        table = open_table(path, ["text"], chunk_rows=20)
        with write_table(tmp_path / f"out{rows}{suffix}", table.schema, RESULTS) as writer:
            for chunk in table:
                writer.write(chunk, results_of(chunk))
                arrow = max(arrow, pa.total_allocated_bytes() - before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python + arrow

    monkeypatch.setattr(tables_write, "_GROUP_BYTES", 2**20)
    small, large = peak(500), peak(2_000)
    # The larger table has 12 MB more of text.
    assert large - small < 4_000_000


# Writing


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_midway_leaves_no_output(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a", "b"]), ["text"], chunk_rows=1)
    with pytest.raises(error), write_table(tmp_path / f"out{suffix}", table.schema, RESULTS) as writer:
        for chunk in table:
            writer.write(chunk, results_of(chunk))
            raise error
    assert names_in(tmp_path) == ["in.csv"]


def test_an_exception_midway_leaves_an_older_output_as_it_was(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    (tmp_path / "out.csv").write_text("older")
    with (
        pytest.raises(RuntimeError),
        write_table(tmp_path / "out.csv", table.schema, RESULTS, overwrite=True) as writer,
    ):
        writer.write(next(iter(table)), results_of(next(iter(table))))
        raise RuntimeError
    assert (tmp_path / "out.csv").read_text() == "older"
    assert names_in(tmp_path) == ["in.csv", "out.csv"]


def test_nothing_stands_under_the_output_path_before_the_table_is_whole(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    with write_table(tmp_path / "out.csv", table.schema, RESULTS) as writer:
        for chunk in table:
            writer.write(chunk, results_of(chunk))
        assert not (tmp_path / "out.csv").exists()
    assert names_in(tmp_path) == ["in.csv", "out.csv"]


def test_an_existing_output_is_refused_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    (tmp_path / "out.jsonl").write_text("older")
    with pytest.raises(InputError, match=r"exists; .*--overwrite"):
        convert(table, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "older"
    convert(table, tmp_path / "out.jsonl", overwrite=True)
    assert texts_of(open_table(tmp_path / "out.jsonl", ["text"])) == ["a"]


def test_an_output_that_appears_meanwhile_is_kept_and_so_is_the_new_table(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a"]), ["text"])
    with (
        pytest.raises(InputError, match=r"has come to exist meanwhile") as caught,
        write_table(tmp_path / "out.csv", table.schema, RESULTS) as writer,
    ):
        for chunk in table:
            writer.write(chunk, results_of(chunk))
        (tmp_path / "out.csv").write_text("someone else's")
    assert (tmp_path / "out.csv").read_text() == "someone else's"
    (kept,) = tmp_path.glob(".pabee-fast-*.tmp")
    assert str(kept) in str(caught.value)
    assert kept.read_text() == "id,text,label,exit_layer\n0,a,even,0\n"


def links_to(path: Path) -> Iterator[Path]:
    yield path
    yield path.parent / "." / "sub" / ".." / path.name
    (path.parent / "soft.csv").symlink_to(path)
    yield path.parent / "soft.csv"
    (path.parent / "hard.csv").hardlink_to(path)
    yield path.parent / "hard.csv"


def test_writing_over_the_input_is_refused_through_any_link(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = put(tmp_path / "in.csv", ["a"])
    content = path.read_bytes()
    for output in links_to(path):
        with pytest.raises(InputError, match=r"is the input itself"):
            convert(open_table(path, ["text"]), output, overwrite=True)
    assert path.read_bytes() == content


def test_an_output_that_is_a_link_stays_one_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "data" / "real.csv")
    convert(open_table(put(tmp_path / "in.csv", ["a"]), ["text"]), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").is_symlink()
    assert names_in(tmp_path / "data") == ["real.csv"]
    assert texts_of(open_table(tmp_path / "out.csv", ["text"])) == ["a"]


def test_an_output_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no directory"):
        check_output(tmp_path / "absent" / "out.csv")
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(InputError, match=r"is not a regular file"):
        check_output(tmp_path / "out.csv", overwrite=True)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_the_output_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    output = convert(open_table(put(tmp_path / "in.csv", ["a"]), ["text"]), tmp_path / "out.csv")
    assert output.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_result_column_that_the_input_has_is_named_with_the_fix(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string()), ("pabee_label", pa.string())])
    assert check_names(schema, ["label", "exit_layer"], "my_") == ["my_label", "my_exit_layer"]
    with pytest.raises(InputError, match=r"has a column 'pabee_label' already; choose another --prefix than 'pabee_'"):
        check_names(schema, ["label", "exit_layer"], "pabee_")
    with (
        pytest.raises(InputError, match=r"has a column 'pabee_label' already"),
        write_table(tmp_path / "out.csv", schema, pa.schema([("pabee_label", pa.string())])),
    ):
        pass
    assert names_in(tmp_path) == []


def test_results_that_do_not_fit_the_rows_are_refused(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", ["a", "b"]), ["text"])
    (chunk,) = table
    results = results_of(chunk)
    with write_table(tmp_path / "out.csv", table.schema, RESULTS) as writer:
        with pytest.raises(ValueError, match=r"results has 1 rows for a chunk of 2"):
            writer.write(chunk, results.slice(0, 1))
        with pytest.raises(ValueError, match=r"results has the columns"):
            writer.write(chunk, results.rename_columns(["a", "b"]))
        writer.write(chunk, results)
    assert texts_of(open_table(tmp_path / "out.csv", ["text"])) == ["a", "b"]


def test_parquet_row_groups_gather_small_chunks(tmp_path: Path) -> None:
    table = open_table(put(tmp_path / "in.csv", [str(row) for row in range(300)]), ["text"], chunk_rows=10)
    assert pq.ParquetFile(convert(table, tmp_path / "out.parquet")).num_row_groups == 1
