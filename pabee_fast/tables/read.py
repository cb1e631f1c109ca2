"""What a table is to the scorer, whatever its format.

Knows rows, columns and texts; knows nothing of models, nor of how results are written. A row that cannot be scored is a
row with an error: never an exception, never left out. Exceptions are for what spoils the table as a whole.
"""

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import UTF8, check_encoding, compression
from pabee_fast.tables.remote import File, Remote

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
WRITTEN_FORMATS = ("csv", "tsv", "jsonl", "parquet")
# The most one csv record or JSON line may take: a quote that is never closed must not read the whole file into memory.
ROW_SIZE = 64 * 2**20
SURROGATES = re.compile("[\ud800-\udfff]")
QUOTING = ("auto", "minimal", "none")


@dataclass(frozen=True)
class Reading:
    """How csv and tsv files are read.

    Args:
        delimiter: what stands between fields; None: a comma, of tsv a tab. A tab may be spelled as in Python.
        quoting: "minimal": a field in double quotes may hold delimiters, line breaks and doubled quotes. "none": quotes
            are characters as any other, and every line is a row. "auto": minimal for csv; for tsv, quotes that close a
            cell are read so too, others are characters, and what looks like rows is not taken for lines of one cell.
        encoding: as Python calls it.

    Raises:
        InputError: a delimiter that is not one character, or an unknown quoting or encoding.
    """

    delimiter: str | None = None
    quoting: str = "auto"
    encoding: str = UTF8

    def __post_init__(self) -> None:
        if self.delimiter == r"\t":
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InputError(f"delimiter={self.delimiter!r}: give one character, no quote or line break")
        if self.quoting not in QUOTING:
            raise InputError(f"quoting={self.quoting!r}: give one of {', '.join(QUOTING)}")
        object.__setattr__(self, "encoding", check_encoding(self.encoding))

    def settings(self) -> dict[str, str]:
        """Return what was asked for beyond the usual, as a job's manifest holds it."""
        return {name: repr(value) for name, value in vars(self).items() if value != getattr(USUAL, name)}


USUAL = Reading()


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


Item = TypeVar("Item", bound=_Sized)


class Place(NamedTuple):
    """Where in a file a row begins, so that reading can start there: bytes of text formats (decompressed), rows of the
    others; and of text formats the lines before it."""

    at: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a table, in input order.

    batch    every input column
    columns  the text columns as large strings, [rows] each
    refused  by row: why it cannot be scored, whatever its texts are
    end      where the next row begins
    lines    of JSON Lines only: per row its object as it was written, or None where the line holds none
    ends     of text formats only: the bytes and lines before each row's end, [rows] each
    """

    batch: pa.RecordBatch
    columns: tuple[pa.Array, ...]
    refused: dict[int, str]
    end: Place
    lines: list[str | None] | None = None
    ends: tuple[Any, Any] | None = None

    def head(self, rows: int) -> "Chunk":
        """Return its first rows, one or more."""
        if self.ends is not None:
            end = Place(int(self.ends[0][rows - 1]), int(self.ends[1][rows - 1]))
        else:
            end = Place(self.end.at - self.batch.num_rows + rows)
        return Chunk(
            self.batch.slice(0, rows),
            tuple(column.slice(0, rows) for column in self.columns),
            {row: error for row, error in self.refused.items() if row < rows},
            end,
            None if self.lines is None else self.lines[:rows],
            None if self.ends is None else (self.ends[0][:rows], self.ends[1][:rows]),
        )

    @property
    def texts(self) -> list[tuple[str | None, ...]]:
        """Per row one str per text column; all None where the row is refused."""
        rows = list(zip(*(column.to_pylist() for column in self.columns), strict=True))
        for row in self.refused:
            rows[row] = (None,) * len(self.columns)
        return rows

    @property
    def errors(self) -> list[str | None]:
        """Per row None, or why it cannot be scored."""
        return [self.refused.get(row) for row in range(self.batch.num_rows)]


class Table(ABC):
    """A table on disk; iterating reads it from its start, any number of times.

    path          where it lies
    text_columns  one name, or two for pairs
    schema        the input columns (`pyarrow.Schema`)
    rows          how many rows it has; None where only reading it all would tell (csv)
    size          bytes that the places of its rows count up to; None where that is not known
    chunk_rows    most rows in a chunk; may be set before reading
    chunk_bytes   most bytes in a chunk, unless one row is larger
    untyped       columns of strings that may stand for numbers (csv)
    mixed         columns of JSON texts, since their values share no type
    """

    schema: pa.Schema
    rows: int | None = None
    size: int | None = None
    untyped: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()

    def __init__(self, path: File, text_columns: tuple[str, ...], chunk_rows: int, chunk_bytes: int) -> None:
        self.path = path
        self.opened = _state(path)
        self.text_columns = text_columns
        self.chunk_rows = chunk_rows
        self.chunk_bytes = chunk_bytes

    def __iter__(self) -> Iterator[Chunk]:
        rows = 0
        for chunk in self.chunks(Place()):
            rows += chunk.batch.num_rows
            yield chunk
        self.check_read(rows)

    @abstractmethod
    def chunks(self, start: Place) -> Iterator[Chunk]:
        """Return chunks from `start` on, which is the file's or that of a row: a chunk's `end`.

        Where a chunk ends depends only on where it starts, `chunk_rows` and `chunk_bytes`.
        """

    def check_read(self, rows: int) -> None:
        """Raise InputError unless the file that was read is the one that was opened, and had so many rows then."""
        if isinstance(self.path, Remote):
            self.path.fs.invalidate_cache()
        if (now := _state(self.path)) != self.opened:
            told = "is gone" if now is None else "was written or replaced"
            raise InputError(f"{self.path} {told} while it was read; run again when nothing changes it")
        if self.rows not in (None, rows):
            raise InputError(
                f"{self.path} has {rows} rows, and had {self.rows} when it was opened; run when nothing changes it"
            )

    def _require_columns(self, fix: str = "name the texts' by --text-column") -> None:
        names = self.schema.names
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise InputError(f"{self.path}: more than one column is named {quoted(repeated)}; rename all but one")
        missing = [name for name in self.text_columns if name not in names]
        if missing:
            raise InputError(
                f"{self.path} has no column {quoted(missing)}; its columns are {quoted(names) or 'none'}: {fix}"
            )

    def _chunk(
        self,
        batch: pa.RecordBatch,
        errors: list[str | None],
        end: Place,
        lines: list[str | None] | None = None,
        ends: tuple[Any, Any] | None = None,
    ) -> Chunk:
        columns = tuple(as_texts(batch.column(name)) for name in self.text_columns)
        refused = {row: error for row, error in enumerate(errors) if error is not None}
        return Chunk(batch, columns, refused, end, lines, ends)


def _state(path: File) -> tuple[Any, ...] | None:
    """Return what changes with a file's content, as far as can be told without reading it."""
    if isinstance(path, Remote):
        return path.state()
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def table_format(path: str | os.PathLike[str] | File) -> str:
    """Return the format a path's suffix names, that of a compression left aside; raises InputError for any other
    suffix."""
    name = Path(str(path))
    suffix = name.with_suffix("").suffix if compression(name) else name.suffix
    if suffix.lower() not in FORMATS:
        names = ", ".join(FORMATS)
        raise InputError(f"{path}: {suffix or 'no suffix'} names no table format; use one of {names}")
    return FORMATS[suffix.lower()]


def quoted(names: Iterable[str]) -> str:
    """Name as a message lists them."""
    return ", ".join(map(repr, names))


def grouped(items: Iterable[Item], most: int, most_size: int) -> Iterator[Iterator[Item]]:
    """Run of at most `most` items whose sizes sum to at most `most_size`; an item that is larger stands alone.

    Each run must be used up before the next is asked for. They are iterators so that a row's own objects can be dropped
    at once: with lists of rows the garbage collector took two thirds of the time.
    """
    rest = iter(items)
    waiting = next(rest, None)

    def run() -> Iterator[Item]:
        nonlocal waiting
        count = total = 0
        while waiting is not None and (not count or (count < most and total + waiting.size <= most_size)):
            count += 1
            total += waiting.size
            yield waiting
            waiting = next(rest, None)

    while waiting is not None:
        yield run()


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of a type holds texts: strings, or a dictionary of them."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def as_texts(column: pa.Array) -> pa.Array:
    """Return a column's texts as strings; nulls where it is of another type."""
    if not is_text(column.type):
        return pa.nulls(len(column), pa.large_string())
    decoded = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return decoded.cast(pa.large_string())


def joined(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one batch."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def replace_surrogates(text: str) -> str:
    """Return the text with U+FFFD for every code point that UTF-8 cannot hold."""
    return SURROGATES.sub("\ufffd", text)
