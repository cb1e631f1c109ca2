"""Tables that are parquet files."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pabee_fast.errors import InputError
from pabee_fast.scoring.tables_read import READ_BUFFER, Chunk, Table


class ParquetTable(Table):
    """A parquet file, decoded a few rows at a time."""

    def __init__(self, path: Path, text_columns: tuple[str, ...], chunk_rows: int, chunk_bytes: int) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        with self._open() as file:
            self.schema = file.schema_arrow
            self.rows = file.metadata.num_rows
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
        self._batch_rows = min(chunk_rows, max(chunk_bytes // max(row_bytes, 1), 1))
        self._require_columns()

    def __iter__(self) -> Iterator[Chunk]:
        with self._open() as file:
            for batch in self._batches(file):
                errors: list[str | None] = [None] * batch.num_rows
                batch = _repaired(batch, errors)
                columns = [_texts(name, batch.column(name), errors) for name in self.text_columns]
                yield self._chunk(batch, columns, errors)

    def _batches(self, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        if self.rows == 0:
            return  # pyarrow 18 cannot iterate over a file without row groups
        try:
            for batch in file.iter_batches(batch_size=self._batch_rows):
                yield from _halved(batch, self.chunk_bytes)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} is damaged: {error}") from error

    def _open(self) -> pq.ParquetFile:
        try:
            # A buffer and no pre-buffering: otherwise whole column chunks are read into memory.
            return pq.ParquetFile(self.path, buffer_size=READ_BUFFER, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} cannot be read as parquet: {error}") from error


def _halved(batch: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most `most_bytes` bytes or one row."""
    if batch.num_rows <= 1 or sum(map(_size, batch.columns)) <= most_bytes:
        yield batch
        return
    middle = batch.num_rows // 2
    yield from _halved(batch.slice(0, middle), most_bytes)
    yield from _halved(batch.slice(middle), most_bytes)


def _size(column: pa.Array) -> int:
    """Bytes of the column's own rows."""
    # The `nbytes` of a slice counts the whole dictionary, or all texts that the slices of a string view share.
    if pa.types.is_dictionary(column.type):
        return column.indices.nbytes
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string()).nbytes
    return column.nbytes


def _repaired(batch: pa.RecordBatch, errors: list[str | None]) -> pa.RecordBatch:
    """The batch with valid UTF-8 only, which parquet does not check; a note in `errors` for every row that changed."""
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
                values.append(_decoded(value) if _is_text(column.type) else None)
                errors[row] = f"column {name!r} holds bytes that are not UTF-8"
        columns.append(column if whole else pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _decoded(value: pa.Scalar) -> str:
    text = value.value if isinstance(value, pa.DictionaryScalar) else value
    return str(text.as_buffer().to_pybytes(), "utf-8", "replace")


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _texts(name: str, column: pa.Array, errors: list[str | None]) -> list[str | None]:
    """The column's texts, with a note in `errors` for every row that has none."""
    if _is_text(column.type) or pa.types.is_null(column.type):
        texts = column.to_pylist()
        reason = f"column {name!r} is null"
    else:
        texts = [None] * len(column)
        reason = f"column {name!r} is of type {column.type}, not text; convert it to strings"
    for row, text in enumerate(texts):
        if text is None:
            errors[row] = errors[row] or reason
    return texts
