"""Tables that are csv or tsv files.

Python's csv module reads them, since pyarrow's reader cannot keep a broken record in its place.
"""

import codecs
import csv
import io
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import UTF8, open_bytes
from pabee_fast.tables.read import (
    ROW_SIZE,
    SURROGATES,
    USUAL,
    Chunk,
    Place,
    Reading,
    Table,
    as_texts,
    grouped,
    quoted,
    replace_surrogates,
    table_format,
)

logger = logging.getLogger(__name__)

# What a str takes beyond its characters: a record of very many short lines must not outgrow ROW_SIZE by it.
_STR_OVERHEAD = 64


class CsvTable(Table):
    """A csv or tsv file; all its columns are strings.

    Opening one raises the csv module's limit on the length of a field, which is one for the process.
    """

    def __init__(
        self,
        path: Path,
        text_columns: tuple[str, ...],
        chunk_rows: int,
        chunk_bytes: int,
        reading: Reading = USUAL,
    ) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        csv.field_size_limit(max(csv.field_size_limit(), ROW_SIZE))
        self._encoding = reading.encoding
        self._dialect = _Dialect.of(path, reading)
        self._told: set[str] = set()
        with self._bytes(0) as file:
            self._first = Place(len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0)
        with self._open(self._first) as text:
            header = next(_records(text, self._dialect, self._first, str(path), tell=self._tell), None)
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
        width = len(self.schema)
        texts_at = [self.schema.names.index(name) for name in self.text_columns]
        end = start = max(start, self._first)
        with self._open(start) as file:
            records = _records(file, self._dialect, start, str(self.path), width, self._tell)
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
                arrays = [self._array(column, lines, errors) for column in columns]
                batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
                yield self._chunk(batch, [as_texts(arrays[index]) for index in texts_at], errors, end)

    def _bytes(self, at: int) -> BinaryIO:
        return open_bytes(self.path, at, self._encoding)

    def _open(self, start: Place) -> TextIO:
        # Bytes that are not UTF-8 become surrogates, which no valid file holds: so they can be told afterwards.
        return io.TextIOWrapper(self._bytes(start.at), UTF8, errors="surrogateescape", newline="")

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
    """Return how many bytes the first record takes of a csv or tsv file that `tables_write` made."""
    with path.open(encoding=UTF8, newline="") as file:
        return next(_records(file, _Dialect.of(path, Reading(quoting="minimal")), Place(), str(path))).end.at


class _Dialect(NamedTuple):
    """What stands between fields; whether quotes mean anything; and whether those that do not close are characters."""

    delimiter: str
    has_quotes: bool
    is_lenient: bool

    @classmethod
    def of(cls, path: Path, reading: Reading) -> "_Dialect":
        is_tsv = table_format(path) == "tsv"
        delimiter = reading.delimiter or ("\t" if is_tsv else ",")
        return cls(delimiter, reading.quoting != "none", is_tsv and reading.quoting == "auto")

    def split(self, line: str) -> list[str]:
        """Return a line's fields where quotes are characters as any other."""
        return line.rstrip("\r\n").split(self.delimiter)

    def is_cell(self, lines: list[str], fields: list[str], width: int) -> bool:
        """Whether a record over several lines has lines within its cells, rather than being rows with stray quotes.

        Rows are what each have as many fields as there are columns. But where every field is in quotes, as
        `tables_write` puts them around lines, a program has written them.
        """
        if len(fields) != width:
            return False
        if any(len(self.split(line)) != width for line in lines):
            return True
        return width > 1 and "".join(lines).rstrip("\r\n") == all_quoted(fields, self.delimiter)


def all_quoted(fields: Sequence[str | None], delimiter: str) -> str:
    """Return a record, without its end, whose fields are all in quotes."""
    return delimiter.join(f'"{(field or "").replace(chr(34), chr(34) * 2)}"' for field in fields)


_ONE_CELL = "a cell in quotes spans several lines; if the quotes are part of the texts, give --quoting none"
_ROWS = (
    "a quote that is closed on a later line is read as a character, since the lines look like rows; if they are one "
    "cell, give --quoting minimal"
)
_CHARACTER = (
    "a quote that does not close a cell is read as a character; if quotes around whole texts are part of them too, "
    "give --quoting none"
)


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

    @property
    def record(self) -> list[str]:
        """The lines since the last record."""
        return self._record

    def settle(self) -> int:
        """Count the record's lines as passed; their size."""
        size = self._size
        at, lines = self.passed
        self.passed = Place(at + sum(map(_bytes, self._record)), lines + len(self._record))
        self._record.clear()
        self._size = 0
        return size

    def give_back(self) -> str:
        """Keep only the first line of the record, and return it; the others will be read again."""
        self._again.extendleft(reversed(self._record[1:]))
        del self._record[1:]
        self._size = len(self._record[0]) + _STR_OVERHEAD
        return self._record[0]


def _bytes(line: str) -> int:
    """How many bytes of the file a line was read from."""
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _records(
    file: TextIO,
    dialect: _Dialect,
    start: Place,
    name: str,
    width: int | None = None,
    tell: Callable[[int, str], None] = lambda line, what: None,
) -> Iterator[_Record]:
    """The records of a csv file that was opened at `start`; `name` is its in messages.

    One that does not parse gives only its first line to the error, or to be read without quotes where the dialect is
    lenient. So a stray quote costs the row it is in, and not all rows up to the next quote; a line that is given back
    is read a second time at most once per quote.

    Args:
        width: how many columns there are; None: as many as the first record has fields.
        tell: told the line, and what was made of its quotes.
    """
    lines = _Lines(file, name, start)
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.has_quotes else csv.QUOTE_NONE,
        strict=True,
    )
    while True:
        line = lines.passed.lines + 1
        error = None
        try:
            fields = next(reader, None)
        except csv.Error as failure:
            first = lines.give_back()
            if dialect.is_lenient:
                fields = dialect.split(first)
                tell(line, _CHARACTER)
            else:
                fields, error = [], f"line {line} is not valid csv: {failure}"
        else:
            if fields is None:
                return
            if dialect.is_lenient and len(lines.record) > 1:
                if dialect.is_cell(lines.record, fields, width or len(fields)):
                    tell(line, _ONE_CELL)
                else:
                    fields = dialect.split(lines.give_back())
                    tell(line, _ROWS)
        size = lines.settle()
        if fields or error:
            yield _Record(size, line, lines.passed, [*fields], error)
