"""Tables that are Arrow's own kinds of file: parquet, and Arrow IPC as Hugging Face `datasets` writes it."""

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import READ_BUFFER, open_file
from pabee_fast.tables.read import Chunk, Place, Table, as_texts, is_text, joined, table_format
from pabee_fast.tables.remote import File

# What pyarrow raises of a damaged file; names that are not UTF-8 and numbers beyond all bounds are Python's own errors.
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError)


class BatchTable(Table):
    """A file that pyarrow reads as record batches, of whatever size: cut anew into chunks."""

    def chunks(self, start: Place) -> Iterator[Chunk]:
        at = start.at
        with closing(self._checked(at)) as batches:
            for batch in _cut(batches, self._most_rows(), self.chunk_bytes):
                at += batch.num_rows
                errors: list[str | None] = [None] * batch.num_rows
                batch = _repaired(batch, errors)
                for name in self.text_columns:
                    _note_missing(name, batch.column(name), errors)
                yield self._chunk(batch, errors, Place(at))

    def _most_rows(self) -> int:
        return self.chunk_rows

    @abstractmethod
    def _batches(self, first: int) -> Iterator[pa.RecordBatch]:
        """Return the rows from `first` on."""

    def _checked(self, first: int) -> Any:  # a generator, for `closing`
        with self._damage_told():
            yield from self._batches(first)

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """Turn what pyarrow raises of a damaged file into an InputError."""
        try:
            yield
        except _DAMAGE as error:
            kind = table_format(self.path)
            raise InputError(f"{self.path} cannot be read as {kind}, or is damaged: {error}") from error


class ParquetTable(BatchTable):
    """A parquet file, decoded a few rows at a time; of the row groups before the first row only the sizes are read."""

    def __init__(self, path: File, text_columns: tuple[str, ...], chunk_rows: int, chunk_bytes: int) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        with self._damage_told(), self._open() as file:
            self.schema = file.schema_arrow
            self.rows = file.metadata.num_rows
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            self._group_rows = [group.num_rows for group in groups]
            self._row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
            self._require_columns()

    def _most_rows(self) -> int:
        return min(self.chunk_rows, max(self.chunk_bytes // max(self._row_bytes, 1), 1))

    def _batches(self, first: int) -> Iterator[pa.RecordBatch]:
        group = 0
        while group < len(self._group_rows) and first >= self._group_rows[group]:
            first -= self._group_rows[group]
            group += 1
        if group == len(self._group_rows):
            return  # pyarrow 18 cannot iterate over no row groups
        with self._open() as file:
            groups = list(range(group, len(self._group_rows)))
            yield from _without(file.iter_batches(batch_size=self._most_rows(), row_groups=groups), first)

    def _open(self) -> pq.ParquetFile:
        # A buffer and no pre-buffering: otherwise whole column chunks are read into memory.
        return pq.ParquetFile(open_file(self.path), buffer_size=READ_BUFFER, pre_buffer=False)


class ArrowTable(BatchTable):
    """An Arrow IPC file or stream, a batch at a time."""

    def __init__(self, path: File, text_columns: tuple[str, ...], chunk_rows: int, chunk_bytes: int) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        # Mapped into memory, so that counting the rows does not read them; of a remote file, they are not counted.
        with self._damage_told(), self._mapped() as source:
            reader = _ipc_reader(source)
            self.schema = reader.schema
            self.rows = sum(batch.num_rows for batch in _ipc_batches(reader)) if isinstance(path, Path) else None
            self._require_columns()

    def _mapped(self) -> pa.NativeFile:
        return pa.memory_map(os.fsencode(self.path)) if isinstance(self.path, Path) else open_file(self.path)

    def _batches(self, first: int) -> Iterator[pa.RecordBatch]:
        with open_file(self.path) as source:  # a mapped file that is cut meanwhile would end the process
            for batch in _without(_ipc_batches(_ipc_reader(source)), first):
                _check_layout(batch)
                yield batch


def _ipc_reader(source: pa.NativeFile) -> Any:
    """The file format has its name at the start; without it, it is the stream format."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _ipc_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def _without(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches less their first `rows` rows."""
    for batch in batches:
        skipped = min(rows, batch.num_rows)
        rows -= skipped
        if skipped < batch.num_rows:
            yield batch.slice(skipped)


def _cut(batches: Iterator[pa.RecordBatch], most_rows: int, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of `most_rows`, halved until they hold at most `most_bytes` bytes or one row.

    How many rows a batch gets depends only on the rows from its first on, so that reading can begin at any batch.
    """
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for more in batches:
        waiting.append(more)
        rows += more.num_rows
        while rows >= most_rows:
            batch, waiting = _first(waiting, most_rows, most_bytes)
            rows -= batch.num_rows
            yield batch
    while rows:
        batch, waiting = _first(waiting, most_rows, most_bytes)
        rows -= batch.num_rows
        yield batch


def _first(
    waiting: list[pa.RecordBatch], most_rows: int, most_bytes: int
) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
    """Return the next batch of `_cut`, and what is left."""
    whole = waiting[0] if waiting[0].num_rows >= most_rows else joined(pa.Table.from_batches(waiting))
    rest = waiting[1:] if whole is waiting[0] else []
    rows = min(most_rows, whole.num_rows)
    while rows > 1 and sum(map(_size, whole.slice(0, rows).columns)) > most_bytes:
        rows //= 2
    left = whole.slice(rows)
    return whole.slice(0, rows), [left, *rest] if left.num_rows else rest


def _size(column: pa.Array) -> int:
    """Return bytes of the column's own rows."""
    # The `nbytes` of a slice counts the whole dictionary, or all texts that the slices of a string view share.
    if pa.types.is_dictionary(column.type):
        return column.indices.nbytes
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string()).nbytes
    return column.nbytes


def _check_layout(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid where offsets lead beyond the batch's buffers. Texts that are not UTF-8 may stay."""
    for column in batch.columns:
        column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return the type with bytes in place of texts."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_string_view(kind):
        return pa.binary_view()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type), kind.keys_sorted)
    return kind


def _repaired(batch: pa.RecordBatch, errors: list[str | None]) -> pa.RecordBatch:
    """Return the batch with valid UTF-8 only, which parquet does not check; a note in `errors` for every row that
    changed."""
    try:
        batch.validate(full=True)
        return batch
    except pa.ArrowInvalid:
        pass
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = []
        whole = True
        for row, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                whole = False
                values.append(_decoded(value) if is_text(column.type) else None)
                errors[row] = f"column {name!r} holds bytes that are not UTF-8"
        columns.append(column if whole else pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _decoded(value: pa.Scalar) -> str:
    text = value.value if isinstance(value, pa.DictionaryScalar) else value
    return str(text.as_buffer().to_pybytes(), "utf-8", "replace")


def _note_missing(name: str, column: pa.Array, errors: list[str | None]) -> None:
    """Note in `errors` every row that has no text in the column."""
    texts, reason = as_texts(column), f"column {name!r} is null"
    if not is_text(column.type) and not pa.types.is_null(column.type):
        reason = f"column {name!r} is of type {column.type}, not text; convert it to strings"
    if texts.null_count:
        for row in np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False)).tolist():
            errors[row] = errors[row] or reason
