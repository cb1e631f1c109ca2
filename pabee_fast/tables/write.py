"""Writes a table with its result columns, chunk by chunk, and puts it in place only when it is whole.

Knows files and columns; knows nothing of what the results mean.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import COMPRESSIONS, READ_BUFFER, compressed, compression, open_file
from pabee_fast.tables.csv import header_bytes
from pabee_fast.tables.durable import durable_file
from pabee_fast.tables.read import WRITTEN_FORMATS, Chunk, quoted, table_format
from pabee_fast.tables.remote import refuse_url
from pabee_fast.tables.texts import TEXT, bytes_of, json_bodies, json_objects, side_by_side, text_values

_GROUP_ROWS = 2**16
_GROUP_BYTES = 64 * 2**20


def check_names(schema: pa.Schema, result_names: Sequence[str], prefix: str = "") -> list[str]:
    """Return the result columns' names with the prefix; raises InputError where the input has a column of such a
    name."""
    names = [prefix + name for name in result_names]
    taken = [name for name in names if name in schema.names]
    if taken:
        raise InputError(f"the input has a column {quoted(taken)} already; choose another --prefix than {prefix!r}")
    return names


def output_format(path: str | os.PathLike[str]) -> str:
    """Return the format that a path's suffix names, where tables can be written in it; raises InputError otherwise."""
    try:
        kind = table_format(path)
    except InputError:
        kind = ""
    if kind not in WRITTEN_FORMATS or (kind == "parquet" and compression(path)):
        names, others = ", ".join(f".{name}" for name in WRITTEN_FORMATS), ", ".join(COMPRESSIONS)
        raise InputError(
            f"{path}: tables are written as {names}; choose one of these suffixes (all but .parquet may be followed by "
            f"one of {others})"
        )
    return kind


def check_output(
    path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Path:
    """Return the file that writing to `path` would make, links followed; raises InputError where it must not be
    written.

    That is: its suffix names no format, it is `source` (through links, too), it exists and `overwrite` is False, it is
    not a regular file, or its directory does not exist.
    """
    refuse_url(os.fspath(path))
    output_format(path)
    target = Path(os.path.realpath(path))
    if source is not None:
        same = target.exists() and os.path.exists(source) and target.samefile(source)
        if same or target == Path(os.path.realpath(source)):
            raise InputError(f"{path} is the input itself; write to another file")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is not a regular file; write to a table file")
    if target.exists() and not overwrite:
        raise InputError(f"{path} exists; write to another file, or use --overwrite (overwrite=True)")
    if not target.parent.is_dir():
        raise InputError(f"{path}: there is no directory {target.parent}; make it first")
    return target


@contextmanager
def write_table(
    path: str | os.PathLike[str],
    schema: pa.Schema,
    results: pa.Schema,
    *,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Iterator["TableWriter"]:
    """Write the columns of `schema` followed by those of `results`; the suffix of `path` names the format, and what it
    is compressed by (.gz, .bz2, .zst; not parquet).

    The rows go to a temporary file in the same directory, which takes its place under `path` when the block ends well.
    When it ends in an exception nothing is left, and an older output stays as it was.

    jsonl: the input's own lines are kept as they are written, the results added at their end. From other formats: null
    stays null, NaN and infinities become null, times and other types that JSON lacks become strings, bytes base64.
    csv: null is an empty field; nested values are written as JSON, bytes in base64.
    parquet: types are kept.

    source     the input, which must not be overwritten
    overwrite  whether an existing output is replaced

    Raises InputError as `check_output` does, or where an input and a result column have one name.
    """
    check_names(schema, results.names)
    target = check_output(path, source, overwrite)
    with (
        durable_file(target, "table", replace=overwrite) as file,
        compressed(file, compression(path)) as packed,
    ):
        writer = open_writer(output_format(path), packed, schema, results)
        try:
            yield writer
        finally:
            writer.close()


def check_columns(kind: str, schema: pa.Schema) -> None:
    """Raise InputError where a format cannot hold a column: parquet lacks some of Arrow's types."""
    for field in schema if kind == "parquet" else ():
        column = pa.table([_one_null(field.type)], schema=pa.schema([field.with_nullable(True)]))
        try:
            pq.write_table(column, pa.BufferOutputStream())  # some types fail with a row alone
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"column {field.name!r} is of type {field.type}, which parquet cannot hold: leave it out, convert it, "
                "or write jsonl (--output OUTPUT.jsonl, --format jsonl)"
            ) from error


def _one_null(kind: pa.DataType) -> pa.Array:
    """Return a column of one row, or of none where Arrow cannot make such a null."""
    try:
        return pa.nulls(1, kind)
    except pa.ArrowException:
        return pa.array([], kind)


def open_writer(kind: str, file: BinaryIO, schema: pa.Schema, results: pa.Schema) -> "TableWriter":
    """Return what writes a table of a format into an open file, its header included; see `write_table`."""
    return _WRITERS[kind](file, schema, results)


def join_tables(kind: str, paths: Iterable[Path], file: BinaryIO) -> None:
    """Write the rows of several tables of one format and the same columns, one after the other, as one such table.

    Each is read before the next is asked for.
    """
    if kind == "parquet":
        others = iter(paths)
        first = next(others)
        with closing(_GroupedParquet(file, pq.read_schema(open_file(first)))) as whole:
            for path in chain([first], others):
                for batch in pq.ParquetFile(open_file(path), buffer_size=READ_BUFFER, pre_buffer=False).iter_batches():
                    whole.append(batch)
        return
    for number, path in enumerate(paths):
        with path.open("rb") as part:
            part.seek(header_bytes(path) if number and kind != "jsonl" else 0)
            shutil.copyfileobj(part, file, READ_BUFFER)


class TableWriter(ABC):
    """Writes rows in the order they are given."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, results: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._results = results

    def write(self, chunk: Chunk, results: pa.RecordBatch) -> None:
        """Append the chunk's rows, each with its row of `results`; raises ValueError where rows or columns differ."""
        for what, batch, schema in (
            ("chunk.batch", chunk.batch, self._schema),
            ("results", results, self._results),
        ):
            if not batch.schema.equals(schema):
                raise ValueError(f"{what} has the columns {batch.schema}, not {schema}")
        if results.num_rows != chunk.batch.num_rows:
            raise ValueError(f"results has {results.num_rows} rows for a chunk of {chunk.batch.num_rows}")
        self._append(chunk, results)

    @abstractmethod
    def _append(self, chunk: Chunk, results: pa.RecordBatch) -> None: ...

    def close(self) -> None:
        """Write what is left over; the file itself stays open."""
        self._file.flush()


class _CsvWriter(TableWriter):
    """Fields are quoted only where they need it, as Python's csv module does."""

    delimiter = ","

    def __init__(self, file: BinaryIO, schema: pa.Schema, results: pa.Schema) -> None:
        super().__init__(file, schema, results)
        self._write([pa.array([name], TEXT) for name in (*schema.names, *results.names)])

    def _append(self, chunk: Chunk, results: pa.RecordBatch) -> None:
        columns = [text_values(column)[0] for column in (*chunk.batch.columns, *results.columns)]
        self._write([column.fill_null("") for column in columns])

    def _write(self, columns: list[pa.Array]) -> None:
        in_quotes = [side_by_side('"', pc.replace_substring(column, '"', '""'), '"') for column in columns]
        needed = [pc.match_substring_regex(column, f'["\r\n{self.delimiter}]') for column in columns]
        if len(columns) == 1:  # an empty line would be none
            needed = [pc.or_(needed[0], pc.equal(columns[0], ""))]
        whole = self._must_be_quoted(columns)
        if whole is not None:
            needed = [pc.or_(one, whole) for one in needed]
        fields = map(pc.if_else, needed, in_quotes, columns)
        self._file.write(bytes_of(side_by_side(side_by_side(*fields, between=self.delimiter), "\n")))

    def _must_be_quoted(self, columns: list[pa.Array]) -> pa.Array | None:
        """Return whether all of a row's fields must be in quotes for readers of the format to understand it."""
        return None


class _TsvWriter(_CsvWriter):
    delimiter = "\t"

    def _must_be_quoted(self, columns: list[pa.Array]) -> pa.Array | None:
        # All fields in quotes tell a reader that lines within one are no rows.
        return reduce(pc.or_, (pc.match_substring_regex(column, "[\r\n]") for column in columns))


class _JsonWriter(TableWriter):
    def _append(self, chunk: Chunk, results: pa.RecordBatch) -> None:
        if chunk.lines is None:
            bodies = json_objects(chunk.batch)
        else:
            without = [row for row, line in enumerate(chunk.lines) if line is None]
            others = iter(json_bodies(chunk.batch.take(pa.array(without, pa.int64()))))
            written = [next(others) if line is None else line[1:-1].strip() for line in chunk.lines]
            bodies = pa.array(written, TEXT)
        added = json_objects(results)
        is_one_empty = pc.or_(pc.equal(bodies, ""), pc.equal(added, ""))
        between = pc.if_else(is_one_empty, pa.scalar("", TEXT), pa.scalar(", ", TEXT))
        self._file.write(bytes_of(side_by_side("{", bodies, between, added, "}\n")))


class _GroupedParquet:
    """Gathers batches into row groups of at least `_GROUP_ROWS` rows or `_GROUP_BYTES` bytes."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._parquet = pq.ParquetWriter(file, schema)
        self._waiting: list[pa.RecordBatch] = []

    def append(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        rows = sum(batch.num_rows for batch in self._waiting)
        if rows >= _GROUP_ROWS or sum(batch.nbytes for batch in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._parquet.write_table(pa.Table.from_batches(self._waiting))
            self._waiting.clear()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            # An open one would be closed when it is collected, after its file.
            self._parquet.close()


class _ParquetWriter(TableWriter):
    def __init__(self, file: BinaryIO, schema: pa.Schema, results: pa.Schema) -> None:
        super().__init__(file, schema, results)
        # Hugging Face datasets would cast the table to the columns it recorded, which lack the results.
        metadata = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
        self._whole = pa.schema([*schema, *results], metadata=metadata)
        self._groups = _GroupedParquet(file, self._whole)

    def _append(self, chunk: Chunk, results: pa.RecordBatch) -> None:
        columns = [*chunk.batch.columns, *results.columns]
        self._groups.append(pa.RecordBatch.from_arrays(columns, schema=self._whole))

    def close(self) -> None:
        self._groups.close()
        super().close()


_WRITERS: dict[str, type[TableWriter]] = {
    "csv": _CsvWriter,
    "tsv": _TsvWriter,
    "jsonl": _JsonWriter,
    "parquet": _ParquetWriter,
}
