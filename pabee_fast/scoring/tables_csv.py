"""Tables that are csv or tsv files.

Python's csv module reads them, since pyarrow's reader cannot keep a broken record in its place.
"""

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.scoring.tables_read import (
    ROW_SIZE,
    SURROGATES,
    Chunk,
    Place,
    Table,
    grouped,
    open_bytes,
    quoted,
    replace_surrogates,
    table_format,
)

# What a str takes beyond its characters: a record of very many short lines must not outgrow ROW_SIZE by it.
_STR_OVERHEAD = 64


class CsvTable(Table):
    """A csv or tsv file; all its columns are strings.

    Opening one raises the csv module's limit on the length of a field, which is one for the process.
    """

    def __init__(self, path: Path, text_columns: tuple[str, ...], chunk_rows: int, chunk_bytes: int) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        csv.field_size_limit(max(csv.field_size_limit(), ROW_SIZE))
        self._delimiter = "\t" if table_format(path) == "tsv" else ","
        with open_bytes(path) as file:
            self._first = Place(len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0)
        with self._open(self._first) as text:
            header = next(_records(text, self._delimiter, self._first, str(path)), None)
        if header is None:
            raise InputError(
                f"{path} is empty; its first line must name the columns, {quoted(text_columns)} among them"
            )
        if header.error is not None:
            raise InputError(f"{path}: its header does not parse: {header.error}")
        names = [str(name) for name in header.fields]
        if any(map(SURROGATES.search, names)):
            raise InputError(f"{path}: its header is not UTF-8; convert the file to UTF-8 first")
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self._require_columns()
        self._first = header.end

    def chunks(self, start: Place) -> Iterator[Chunk]:
        width = len(self.schema)
        texts_at = [self.schema.names.index(name) for name in self.text_columns]
        end = start = max(start, self._first)
        with self._open(start) as file:
            records = _records(file, self._delimiter, start, str(self.path))
            for run in grouped(records, self.chunk_rows, self.chunk_bytes):
                columns: list[list[str | None]] = [[] for _ in range(width)]
                errors: list[str | None] = []
                lines: list[int] = []
                for record in run:
                    end = record.end
                    errors.append(None if len(record.fields) == width else self._fit(record))
                    lines.append(record.line)
                    for column, value in zip(columns, record.fields, strict=True):
                        column.append(value)
                arrays = [_array(column, lines, errors) for column in columns]
                batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
                yield self._chunk(batch, [columns[index] for index in texts_at], errors, end)

    def _open(self, start: Place) -> TextIO:
        # Bytes that are not UTF-8 become surrogates, which no valid file holds: so they can be told afterwards.
        return io.TextIOWrapper(open_bytes(self.path, start.at), "utf-8", errors="surrogateescape", newline="")

    def _fit(self, record: "_Record") -> str:
        """Bring a record to one field per column; what was wrong with it."""
        fields, width = record.fields, len(self.schema)
        found, extra = len(fields), fields[width:]
        fields[width:] = [None] * (width - found)
        if record.error is not None:
            return record.error
        beyond = f"; beyond them: {quoted(map(str, extra)):.200}" if extra else ""
        return f"line {record.line} has {found} fields where the header has {width}{beyond}"


def header_bytes(path: Path) -> int:
    """How many bytes the first record of a csv or tsv file takes; one without a byte order mark."""
    delimiter = "\t" if table_format(path) == "tsv" else ","
    with path.open(encoding="utf-8", newline="") as file:
        return next(_records(file, delimiter, Place(), str(path))).end.at


def _array(column: list[str | None], lines: list[int], errors: list[str | None]) -> pa.Array:
    """The column as strings, with a note in `errors` for every row whose bytes were not UTF-8."""
    try:
        return pa.array(column, pa.string())
    except UnicodeEncodeError:
        for row, value in enumerate(column):
            if value is not None and SURROGATES.search(value):
                column[row] = replace_surrogates(value)
                errors[row] = errors[row] or f"line {lines[row]} holds bytes that are not UTF-8"
        return pa.array(column, pa.string())


class _Record(NamedTuple):
    """One csv record: its size, the line it begins on, where it ends, and its fields, none where it has an error."""

    size: int
    line: int
    end: Place
    fields: list[str | None]
    error: str | None


class _Lines:
    """A file's lines for `csv.reader`, which can be given back after a record that did not parse."""

    def __init__(self, file: TextIO, name: str, start: Place) -> None:
        self._file, self._name = file, name
        self._again: deque[str] = deque()
        self._record: list[str] = []
        self._size = 0
        self.passed = start

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._file.readline(ROW_SIZE)
        if not line:
            raise StopIteration
        self._record.append(line)
        self._size += len(line) + _STR_OVERHEAD
        if self._size > ROW_SIZE:
            if len(self._record) == 1:
                raise InputError(
                    f"{self._name}: line {self.passed.lines + 1} is longer than {ROW_SIZE} bytes; split it"
                )
            raise csv.Error("a quote is not closed")
        return line

    def settle(self) -> int:
        """Count the record's lines as passed; their size."""
        size = self._size
        at, lines = self.passed
        self.passed = Place(at + sum(map(_bytes, self._record)), lines + len(self._record))
        self._record.clear()
        self._size = 0
        return size

    def give_back(self) -> None:
        """Keep only the first line of the record; the others will be read again."""
        self._again.extendleft(reversed(self._record[1:]))
        del self._record[1:]
        self._size = len(self._record[0]) + _STR_OVERHEAD


def _bytes(line: str) -> int:
    """How many bytes of the file a line was read from."""
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _records(file: TextIO, delimiter: str, start: Place, name: str) -> Iterator[_Record]:
    """The records of a csv file that was opened at `start`; `name` is its in messages.

    One that does not parse gives only its first line to the error. So a stray quote costs the row it is in, and not
    all rows up to the next quote; a line that is given back is read a second time at most once per quote.
    """
    lines = _Lines(file, name, start)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = lines.passed.lines + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            lines.give_back()
            size = lines.settle()
            yield _Record(size, line, lines.passed, [], f"line {line} is not valid csv: {error}")
            continue
        if fields is None:
            return
        size = lines.settle()
        if fields:
            yield _Record(size, line, lines.passed, [*fields], None)
