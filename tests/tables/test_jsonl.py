"""JSON Lines tables keep each object, whatever keys and types the others have."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabee_fast.errors import InputError
from pabee_fast.tables.open import open_table
from tests.tables.cases import column_of, convert, errors_of, read_raw, texts_of


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
