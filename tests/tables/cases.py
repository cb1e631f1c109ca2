"""Tables to read, written by other means than the code under test, and what they were read as."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pabee_fast.tables.open import Chunk, Table, open_table, write_table

SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]
RESULTS = pa.schema([("label", pa.string()), ("exit_layer", pa.int64())])
# One of each kind of character that some format treats specially, beside any other.
SPECIAL = st.sampled_from(list("\"',\t\n\r\0\\ \u2028\ufeff"))
TEXTS = st.text(st.one_of(SPECIAL, st.characters(exclude_categories=["Cs"])))
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
