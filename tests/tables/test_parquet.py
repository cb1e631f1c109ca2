"""Parquet tables keep their types, in parquet; in csv and JSON they become what those can hold."""

import csv
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabee_fast.errors import InputError
from pabee_fast.tables.open import open_table
from tests.tables.cases import (
    column_of,
    convert,
    errors_of,
    put,
    read_raw,
    texts_of,
)

# String types whose slices hold on to the texts of the whole.
VIEWS_IN_PARQUET = int(pa.__version__.split(".")[0]) >= 21
SHARING = [
    pytest.param(
        pa.string_view(),
        marks=pytest.mark.skipif(not VIEWS_IN_PARQUET, reason="pyarrow < 21 writes no string views to parquet"),
    ),
    pa.dictionary(pa.int32(), pa.string()),
]


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


@pytest.mark.parametrize("kind", SHARING, ids=str)
def test_texts_that_slices_share_do_not_make_chunks_of_single_rows(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array([f"{row:0>100}" for row in range(2000)]).cast(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    chunks = list(open_table(tmp_path / "in.parquet", ["text"], chunk_bytes=20_000))
    assert 2 <= len(chunks) <= 40


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_offsets_beyond_a_columns_texts_are_damage_and_told(kind: str, tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 2**30, 3], np.int32))
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    for column in (texts, pa.StructArray.from_arrays([texts], ["k"]), pa.ListArray.from_arrays([0, 1, 2, 3], texts)):
        batch = pa.record_batch([["x", "y", "z"], column], names=["text", "other"])
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(tmp_path / "in.arrow", batch.schema) as writer:
            writer.write_batch(batch)
        with pytest.raises(InputError, match=r"in.arrow cannot be read as arrow, or is damaged: .*offset"):
            list(open_table(tmp_path / "in.arrow", ["text"]))


def test_texts_of_an_arrow_file_that_are_not_utf8_give_their_row_an_error_wherever_they_are(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"], pa.binary()).buffers())
    maps = pa.MapArray.from_arrays([0, 1, 2], ["k", "k"], wrong)
    for column in (wrong, pa.StructArray.from_arrays([wrong], ["k"]), wrong.dictionary_encode(), maps):
        table = pa.table({"text": ["a", "b"], "other": column})
        with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
            writer.write_table(table)
        (chunk,) = open_table(tmp_path / "in.arrow", ["text"])
        assert chunk.errors == [None, "column 'other' holds bytes that are not UTF-8"]


def test_a_column_name_that_is_not_utf8_is_damage_and_told(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "caf~": ["b"]})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "in.parquet", store_schema=False)
    for name in ("in.arrow", "in.parquet"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"caf~", b"caf\xe9"))
        with pytest.raises(InputError, match=r"cannot be read as .*, or is damaged: .*utf-8"):
            open_table(path, ["text"])
