"""Tables of every format keep every row in its place, lose no text, and take bounded memory."""

import csv
import json
import math
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.errors import InputError
from pabee_fast.tables import write as tables_write
from pabee_fast.tables.open import check_output, open_table, table_format, write_table
from tests.tables.cases import (
    RESULTS,
    SUFFIXES,
    TEXTS,
    column_of,
    convert,
    errors_of,
    in_tmp_path,
    put,
    read_raw,
    results_of,
    texts_of,
)


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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_text_column_is_named_with_those_that_exist(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=r"has no column 'review', 'x'; its columns are 'id', 'text'"):
        open_table(put(tmp_path / f"in{suffix}", ["a"]), ["review", "x"])


@pytest.mark.parametrize("name", ["in.txt", "in", "in.txt.gz", "in.gz", "in.json"])
def test_an_unknown_suffix_names_the_supported_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text\n")
    wanted = r"names no table format; use one of \.csv, \.tsv, \.jsonl, \.ndjson, \.parquet"
    with pytest.raises(InputError, match=wanted):
        open_table(tmp_path / name, ["text"])
    with pytest.raises(InputError, match=r"tables are written as \.csv, \.tsv, \.jsonl, \.parquet; choose one"):
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
    small, large = peak(2_000), peak(5_000)
    # The larger table has 24 MB more of text.
    assert large - small < 4_000_000
