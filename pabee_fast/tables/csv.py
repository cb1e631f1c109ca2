"""Tables that are csv or tsv files.

Pyarrow's reader takes the lines of which it can be told beforehand that it reads them as Python's csv module does. The
others go to that, since pyarrow cannot keep a broken record in its place.
"""

import codecs
import csv
import io
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import UTF8, compression, open_bytes
from pabee_fast.tables.read import (
    ROW_SIZE,
    SURROGATES,
    USUAL,
    Chunk,
    Place,
    Reading,
    Table,
    joined,
    quoted,
    replace_surrogates,
)
from pabee_fast.tables.records import Dialect, Outline, Record, records
from pabee_fast.tables.remote import File

logger = logging.getLogger(__name__)

_MOST_AT_ONCE, _LEAST_AT_ONCE = 2**20, 2**15
"""Bytes that are read together: fewer after lines that pyarrow cannot take, so that these cost few others its speed."""


class CsvTable(Table):
    """A csv or tsv file; all its columns are strings.

    Opening one raises the csv module's limit on the length of a field, which is one for the process.
    """

    def __init__(
        self,
        path: File,
        text_columns: tuple[str, ...],
        chunk_rows: int,
        chunk_bytes: int,
        reading: Reading = USUAL,
    ) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        csv.field_size_limit(max(csv.field_size_limit(), ROW_SIZE))
        self._encoding = reading.encoding
        if compression(path) is None and self._encoding == UTF8 and self.opened is not None:
            self.size = self.opened[0]
        self._dialect = Dialect.of(path, reading)
        self._told: set[str] = set()
        with self._bytes(0) as file:
            ahead = _Ahead(file, Place())
            if ahead.look(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                ahead.pass_to(Place(len(codecs.BOM_UTF8)))
            header = next(self._records(ahead), None)
        if header is None:
            raise InputError(
                f"{path} is empty; its first line must name the columns, {quoted(text_columns)} among them"
            )
        if header.error is not None:
            raise InputError(f"{path}: its header does not parse: {header.error}")
        names = [str(name) for name in header.fields]
        if any(map(SURROGATES.search, names)):
            raise InputError(
                f"{path}: its header is not {self._encoding.upper()}; name the file's encoding by --encoding"
            )
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.untyped = frozenset(names)
        self._require_columns("name the texts' by --text-column, or what stands between fields by --delimiter")
        self._first = header.end

    def chunks(self, start: Place) -> Iterator[Chunk]:
        for run in _cut(self._runs(max(start, self._first)), self.chunk_rows, self.chunk_bytes):
            yield self._chunk(run.batch, run.errors, run.end, ends=(run.ends, run.numbers))

    def _bytes(self, at: int) -> BinaryIO:
        return open_bytes(self.path, at, self._encoding)

    def _runs(self, place: Place) -> Iterator["_Run"]:
        """Yield the records from a place on, as many together as can be read together."""
        size, hard = _MOST_AT_ONCE, _LEAST_AT_ONCE // 16
        with self._bytes(place.at) as file:
            ahead = _Ahead(file, place)
            while data := ahead.look(size):
                before = ahead.place.at
                run = self._together(ahead, data, is_last=len(data) < size)
                if run is not None:
                    gained = ahead.place.at - before
                    size = min(max(2 * gained, _LEAST_AT_ONCE), _MOST_AT_ONCE)
                    hard = _LEAST_AT_ONCE // 16 if gained >= hard else hard
                    yield run
                elif size > _LEAST_AT_ONCE:
                    size = max(size // 4, _LEAST_AT_ONCE)
                else:
                    yield self._one_by_one(ahead, hard)
                    hard = min(hard * 2, _MOST_AT_ONCE)  # where much is broken, trying costs more than it saves

    def _together(self, ahead: "_Ahead", data: bytes, *, is_last: bool) -> "_Run | None":
        """Read records by pyarrow, and pass them; None where it may read them otherwise than the csv module does."""
        found = Outline.of(data, self._dialect, is_last=is_last)
        if found is None:
            return None
        try:
            table = pyarrow.csv.open_csv(
                pa.BufferReader(pa.py_buffer(data).slice(0, found.size)),
                pyarrow.csv.ReadOptions(use_threads=False, block_size=found.size, column_names=self.schema.names),
                pyarrow.csv.ParseOptions(
                    delimiter=self._dialect.delimiter,
                    quote_char='"' if found.has_quotes else False,
                    newlines_in_values=found.has_quotes,
                ),
                pyarrow.csv.ConvertOptions(column_types=self.schema),
            ).read_all()
        except pa.ArrowInvalid:  # bytes that are not UTF-8, or a record that has not a field for each column
            return None
        if table.num_rows != len(found.ends):
            return None
        at, number = ahead.place
        ahead.pass_to(Place(at + found.size, number + found.lines))
        return _Run(joined(table), [None] * table.num_rows, found.sizes, found.ends + at, found.numbers + number)

    def _one_by_one(self, ahead: "_Ahead", size: int) -> "_Run":
        """Read records by the csv module until they take so many bytes, and pass them."""
        columns: list[list[str | None]] = [[] for _ in self.schema]
        errors: list[str | None] = []
        lines: list[int] = []
        told: list[int] = []  # flat: the garbage collector looks at every tuple
        width, stop = len(columns), ahead.place.at + size
        for record in self._records(ahead, width):
            record_size, line, end, fields, _ = record
            errors.append(None if len(fields) == width else self._fit(record))
            lines.append(line)
            told += (record_size, *end)
            for column, value in zip(columns, fields, strict=True):
                column.append(value)
            if end.at >= stop:
                ahead.pass_to(end)
                break
        else:
            ahead.pass_to(None)
        arrays = [self._array(column, lines, errors) for column in columns]
        sizes, ends, numbers = np.array(told, np.int64).reshape(-1, 3).T
        return _Run(pa.RecordBatch.from_arrays(arrays, schema=self.schema), errors, sizes, ends, numbers)

    def _records(self, ahead: "_Ahead", width: int | None = None) -> Iterator[Record]:
        return records(ahead.lines(), self._dialect, ahead.place, str(self.path), width, self._tell)

    def _tell(self, line: int, what: str) -> None:
        """Warn of what was made of a line's quotes, once for the file."""
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s, line %d: %s", self.path, line, what)

    def _array(self, column: list[str | None], lines: list[int], errors: list[str | None]) -> pa.Array:
        """Return the column as strings, with a note in `errors` for every row whose bytes none of them has."""
        try:
            return pa.array(column, pa.string())
        except UnicodeEncodeError:
            for row, value in enumerate(column):
                if value is not None and SURROGATES.search(value):
                    column[row] = replace_surrogates(value)
                    wrong = f"line {lines[row]} holds bytes that are not {self._encoding.upper()}"
                    errors[row] = errors[row] or wrong
            return pa.array(column, pa.string())

    def _fit(self, record: Record) -> str:
        """Bring a record to one field per column; what was wrong with it."""
        fields, width = record.fields, len(self.schema)
        found, extra = len(fields), fields[width:]
        fields[width:] = [None] * (width - found)
        if record.error is not None:
            return record.error
        beyond = f"; beyond them: {quoted(map(str, extra)):.200}" if extra else ""
        return f"line {record.line} has {found} fields where the header has {width}{beyond}"


class _Ahead(io.RawIOBase):
    """A file's bytes that can be looked at, and read as lines, before they are passed."""

    def __init__(self, file: BinaryIO, place: Place) -> None:
        self.place = place
        self._file, self._held, self._given = file, bytearray(), 0

    def look(self, size: int) -> bytes:
        """Return the next bytes; fewer only where the file ends."""
        self._hold(size)
        return bytes(self._held[:size])

    def _hold(self, size: int) -> None:
        while len(self._held) < size and (more := self._file.read(size - len(self._held))):
            self._held += more

    def pass_to(self, place: Place | None) -> None:
        """Go on from a place; None: from the end of all that was looked at."""
        del self._held[: None if place is None else place.at - self.place.at]
        self.place = place or self.place

    def lines(self) -> TextIO:
        """Return what is not passed as text, line ends as they are. Of several, only the last one may be read."""
        self._given = 0
        # Bytes that are not UTF-8 become surrogates, which no valid file holds: so they can be told afterwards.
        return io.TextIOWrapper(self, UTF8, errors="surrogateescape", newline="")  # type: ignore[type-var]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = self._given + len(buffer)
        self._hold(end)
        data = self._held[self._given : end]
        buffer[: len(data)] = data
        self._given += len(data)
        return len(data)

    def close(self) -> None:
        """Stay open when a reader of lines is given up, which would close it."""


class _Run(NamedTuple):
    """Consecutive records: their columns, what is wrong with each, its size, and the bytes and lines up to its end."""

    batch: pa.RecordBatch
    errors: list[str | None]
    sizes: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray

    @property
    def end(self) -> Place:
        return Place(int(self.ends[-1]), int(self.numbers[-1]))

    def rows(self, first: int, last: int) -> "_Run":
        batch, errors, *others = self
        return _Run(batch.slice(first, last - first), errors[first:last], *(column[first:last] for column in others))


def _cut(runs: Iterator[_Run], most_rows: int, most_size: int) -> Iterator[_Run]:
    """Cut and join runs to ones of at most so many records, whose sizes sum to at most so much; a larger one is alone.

    How many records a run gets depends only on those from its first on, so that reading can begin at any run.
    """
    pieces: list[_Run] = []
    rows = size = 0
    for run in runs:
        first = 0
        while first < len(run.errors):
            sizes = np.cumsum(run.sizes[first : first + most_rows - rows])
            fit = int(np.searchsorted(sizes, most_size - size, "right")) or int(not rows)
            if fit:
                pieces.append(run.rows(first, first + fit))
                first, rows, size = first + fit, rows + fit, size + int(sizes[fit - 1])
            if first < len(run.errors):
                yield _joined(pieces)
                pieces, rows, size = [], 0, 0
    if pieces:
        yield _joined(pieces)


def _joined(runs: list[_Run]) -> _Run:
    batches, errors, *others = zip(*runs, strict=True)
    batch = joined(pa.Table.from_batches(batches))
    return _Run(batch, list(chain.from_iterable(errors)), *map(np.concatenate, others))


def header_bytes(path: Path) -> int:
    """Return how many bytes the first record takes of a csv or tsv file that `tables/write.py` made."""
    with path.open(encoding=UTF8, newline="") as file:
        return next(records(file, Dialect.of(path, Reading(quoting="minimal")), Place(), str(path))).end.at
