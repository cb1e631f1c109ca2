"""Records of csv and tsv files: one by one by Python's csv module, where one that does not parse costs its line alone;
and where they end, where another reader is known to read them alike."""

import codecs
import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

import numpy as np

from pabee_fast.errors import InputError
from pabee_fast.tables.read import ROW_SIZE, Place, Reading, table_format
from pabee_fast.tables.remote import File

LINE_SIZE = 64
"""What a line counts beyond its bytes, as a str takes it: a record of very many short lines must not outgrow ROW_SIZE
by it."""
_NEWLINE, _RETURN, _QUOTE = b'\n\r"'


class Dialect(NamedTuple):
    """What stands between fields; whether quotes mean anything; and whether those that do not close are characters."""

    delimiter: str
    has_quotes: bool
    is_lenient: bool

    @classmethod
    def of(cls, path: File, reading: Reading) -> "Dialect":
        is_tsv = table_format(path) == "tsv"
        delimiter = reading.delimiter or ("\t" if is_tsv else ",")
        return cls(delimiter, reading.quoting != "none", is_tsv and reading.quoting == "auto")

    def split(self, line: str) -> list[str]:
        """Return a line's fields where quotes are characters as any other."""
        return line.rstrip("\r\n").split(self.delimiter)

    def is_cell(self, lines: list[str], fields: list[str], width: int) -> bool:
        """Return whether a record over several lines has lines within its cells, rather than being rows with stray
        quotes.

        Rows are what each have as many fields as there are columns. But where every field is in quotes, as
        `tables/write.py` puts them around lines, a program has written them.
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


class Record(NamedTuple):
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
        self._size += len(line) + LINE_SIZE
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
        """Count the record's lines as passed; their size, in bytes and LINE_SIZE for each."""
        size, count = _bytes("".join(self._record)), len(self._record)
        at, lines = self.passed
        self.passed = Place(at + size, lines + count)
        self._record.clear()
        self._size = 0
        return size + LINE_SIZE * count

    def give_back(self) -> str:
        """Keep only the first line of the record, and return it; the others will be read again."""
        self._again.extendleft(reversed(self._record[1:]))
        del self._record[1:]
        self._size = len(self._record[0]) + LINE_SIZE
        return self._record[0]


def _bytes(line: str) -> int:
    """Return how many bytes of the file a line was read from."""
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def records(
    file: TextIO,
    dialect: Dialect,
    start: Place,
    name: str,
    width: int | None = None,
    tell: Callable[[int, str], None] = lambda line, what: None,
) -> Iterator[Record]:
    """Yield the records of a csv file that was opened at `start`; `name` is its in messages.

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
            yield Record(size, line, lines.passed, [*fields], error)


class Outline(NamedTuple):
    """Whole records at the beginning of some bytes, which pyarrow reads as the csv module does, where they are UTF-8.

    size        the bytes that they take
    lines       the lines that they take
    has_quotes  whether quotes mean anything
    sizes       of each that is not blank
    ends        where each ends
    numbers     the lines up to each's end
    """

    size: int
    lines: int
    has_quotes: bool
    sizes: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, data: bytes, dialect: Dialect, *, is_last: bool) -> "Outline | None":
        """Find the records; None where there may be none that both read alike.

        They do where each quote opens a cell, closes it or is doubled in one, or where none stands at a cell's start,
        so that all are characters. In a lenient dialect, a cell over several lines is the csv module's.

        Args:
            is_last: whether the file ends where the bytes do.
        """
        delimiter = dialect.delimiter.encode()
        if len(delimiter) > 1 or delimiter == b"\0" or data.startswith(codecs.BOM_UTF8):
            return None
        if data.count(b"\r") != data.count(b"\r\n"):
            return None
        codes = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(codes == _NEWLINE) + 1
        if is_last and not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        numbers = np.arange(1, len(ends) + 1)

        # Every other quote closes a cell; which a line's end is in one, so many quotes before it tell.
        quotes = np.flatnonzero(codes == _QUOTE) if dialect.has_quotes else ends[:0]
        padded = np.concatenate(([_NEWLINE], codes, [_NEWLINE]))
        before, after = padded[quotes], padded[quotes + 2]
        opens = (before == _NEWLINE) | (before == delimiter[0])
        has_quotes = bool(opens.any())
        if has_quotes:
            is_whole = np.searchsorted(quotes, ends) % 2 == 0
            if dialect.is_lenient and not is_whole.all():
                return None
            ends, numbers = ends[is_whole], numbers[is_whole]
        if not len(ends):
            return None
        size, lines = int(ends[-1]), int(numbers[-1])
        if size + LINE_SIZE * lines > ROW_SIZE:
            return None
        if has_quotes:
            known = np.searchsorted(quotes, size)
            quotes, opens, after = quotes[:known], opens[:known], after[:known]
            closes = (after == delimiter[0]) | (after == _NEWLINE) | (after == _RETURN)
            is_doubled = quotes[1:-1:2] + 1 == quotes[2::2]
            opens[2::2] |= is_doubled
            closes[1:-1:2] |= is_doubled
            if not (opens[::2].all() and closes[1::2].all()):
                return None

        starts = np.concatenate(([0], ends[:-1]))
        is_row = (codes[starts] != _NEWLINE) & (codes[starts] != _RETURN)
        sizes = ends - starts + LINE_SIZE * np.diff(numbers, prepend=0)
        return cls(size, lines, has_quotes, sizes[is_row], ends[is_row], numbers[is_row])
