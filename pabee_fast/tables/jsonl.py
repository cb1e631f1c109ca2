"""Tables that are JSON Lines files: one object a line.

Python's json module reads them line by line, since pyarrow's reader raises on a key that appears late and on values of
mixed types. Each row carries its own object as it was written, so that JSON Lines output can keep it untouched.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import open_bytes
from pabee_fast.tables.read import ROW_SIZE, Chunk, Place, Table, grouped, replace_surrogates
from pabee_fast.tables.remote import File

# Bounds on what is remembered of a file's keys, so that data used as keys cannot fill the memory.
_MOST_COLUMNS = 4096
_MOST_FIELDS = 256
_MOST_DEPTH = 16
_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    NoneType: "null",
}
_DECODER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def json_text(value: object) -> str:
    """Return the value as JSON on one line, in Unicode; what JSON has no form for becomes a string."""
    return _ENCODER.encode(value)


@dataclass(frozen=True)
class JsonScan:
    """What one reading of JSON Lines files tells: the columns of all of them, and how many rows each has.

    columns      name -> type; None where the values share no type, so that the column is one of JSON texts
    rows         by file
    first_error  of the first line that is no JSON object
    """

    columns: dict[str, pa.DataType | None]
    rows: list[int]
    first_error: str | None = None


def scan_json(paths: Sequence[File], text_columns: Sequence[str], chunk_rows: int, chunk_bytes: int) -> JsonScan:
    """Read the files once, chunk by chunk.

    Raises:
        InputError: a file that cannot be read, a line of 64 MiB or more, more than 4096 different keys.
    """
    seen, rows, first_error = _Seen(), [0] * len(paths), None

    def counted(file: int, run: Iterator["_Row"]) -> Iterator[dict[str, Any]]:
        nonlocal first_error
        for row in run:
            rows[file] += 1
            first_error = first_error or row.error
            yield row.value

    for file, path in enumerate(paths):
        for run in grouped(_rows(path, Place()), chunk_rows, chunk_bytes):
            seen.add_fields(counted(file, run), depth=0)
            if len(seen.fields) > _MOST_COLUMNS:
                raise InputError(f"{path} has more than {_MOST_COLUMNS} different keys; move them into a nested object")
    columns = {name: column.arrow_type() for name, column in seen.fields.items()}
    # A text column stays one of strings whatever else it holds: those rows have an error.
    columns |= {name: pa.string() for name in text_columns if name in columns or not any(rows)}
    return JsonScan(columns, rows, first_error)


class JsonTable(Table):
    """A JSON Lines file; opening reads it once for its columns and the number of its rows, unless they are given."""

    rows: int

    def __init__(
        self,
        path: File,
        text_columns: tuple[str, ...],
        chunk_rows: int,
        chunk_bytes: int,
        columns: dict[str, pa.DataType | None] | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__(path, text_columns, chunk_rows, chunk_bytes)
        first_error = None
        if columns is None or rows is None:
            scan = scan_json([path], text_columns, chunk_rows, chunk_bytes)
            columns, rows, first_error = scan.columns, scan.rows[0], scan.first_error
        self.types, self.rows = columns, rows
        self.mixed = frozenset(name for name, kind in columns.items() if kind is None)
        self.schema = pa.schema([(name, kind or pa.string()) for name, kind in columns.items()])
        try:
            self._require_columns()
        except InputError as error:
            raise InputError(f"{error}; {first_error}" if first_error else str(error)) from None

    def chunks(self, start: Place) -> Iterator[Chunk]:
        end = start
        for run in grouped(_rows(self.path, start), self.chunk_rows, self.chunk_bytes):
            columns: dict[str, list[Any]] = {name: [] for name in self.types}
            errors: list[str | None] = []
            lines: list[str | None] = []
            ends: tuple[list[int], list[int]] = ([], [])
            for row in run:
                end = row.end
                ends[0].append(end.at)
                ends[1].append(end.lines)
                errors.append(row.error)
                lines.append(row.line)
                for name, column in columns.items():
                    column.append(row.value.get(name))
            for name in self.text_columns:
                for row_index, value in enumerate(columns[name]):
                    if type(value) is not str and errors[row_index] is None:
                        errors[row_index] = not_text(name, value)
            arrays = [self._array(name, values) for name, values in columns.items()]
            yield self._chunk(pa.RecordBatch.from_arrays(arrays, schema=self.schema), errors, end, lines, ends)

    def _array(self, name: str, values: list[Any]) -> pa.Array:
        kind = self.types[name]
        if kind is None:
            values = [None if value is None else json_text(value) for value in values]
        elif name in self.text_columns:
            values = [value if value is None or type(value) is str else json_text(value) for value in values]
        return pa.array(values, kind or pa.string())


def not_text(name: str, value: Any) -> str:
    """Return why a column's value cannot be scored."""
    return f"column {name!r} is {'null or missing' if value is None else _NAMES[type(value)]}, not text"


class _Row(NamedTuple):
    """One line: its size in bytes, where it ends, its object's text, the object ({} where there is none), what is wrong
    with it."""

    size: int
    end: Place
    line: str | None
    value: dict[str, Any]
    error: str | None


def _rows(path: File, start: Place) -> Iterator[_Row]:
    with open_bytes(path, start.at) as file:
        at, number = start
        while raw := file.readline(ROW_SIZE):
            at, number = at + len(raw), number + 1
            if len(raw) == ROW_SIZE:
                raise InputError(f"{path}: line {number} is {ROW_SIZE} bytes or longer; is it JSON Lines? Split it")
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            raw = raw.strip()
            if raw:
                yield _Row(len(raw), Place(at, number), *parse_line(number, raw))


def parse_line(number: int, raw: bytes) -> tuple[str | None, dict[str, Any], str | None]:
    """A line's object as it was written, the object, and what is wrong with it; `number` is the line's, from 1."""
    error = None
    try:
        line = raw.decode()
    except UnicodeDecodeError:
        line = raw.decode(errors="replace")
        error = f"line {number} holds bytes that are not UTF-8"
    try:
        value, end = _DECODER.raw_decode(line)
        if end != len(line):
            raise json.JSONDecodeError("Extra data", line, end)
        if b"\\ud" in raw or b"\\uD" in raw:
            text = json_text(value)
            if text != (valid := replace_surrogates(text)):
                value = json.loads(valid)
                error = f"line {number} holds half of a surrogate pair, which is no character"
    except (ValueError, RecursionError) as failure:
        return None, {}, error or f"line {number} is not valid JSON: {failure}"
    if type(value) is not dict:
        return None, {}, f"line {number} is {_NAMES[type(value)]}, not a JSON object"
    return line, value, error


@dataclass
class _Seen:
    """What the values in one place (a column, a list's items, a struct's field) have been so far."""

    types: set[type] = field(default_factory=set)
    lowest: int = 0
    highest: int = 0
    items: "_Seen | None" = None
    fields: dict[str, "_Seen"] = field(default_factory=dict)
    unbounded: bool = False

    def add(self, values: Sequence[Any], depth: int) -> None:
        """Take note of more values; memory is bounded by `_MOST_FIELDS` and `_MOST_DEPTH`."""
        new = set(map(type, values))
        self.types |= new
        if int in new:
            numbers = [value for value in values if type(value) is int]
            self.lowest = min(self.lowest, min(numbers))
            self.highest = max(self.highest, max(numbers))
        if depth == _MOST_DEPTH and new & {list, dict}:
            self.unbounded = True
        if self.unbounded:
            return
        if list in new:
            items = list(chain.from_iterable(value for value in values if type(value) is list))
            self.items = self.items or _Seen()
            self.items.add(items, depth + 1)
        if dict in new:
            self.add_fields((value for value in values if type(value) is dict), depth)
            if len(self.fields) > _MOST_FIELDS:
                self.unbounded = True
                self.fields.clear()

    def add_fields(self, objects: Iterable[dict[str, Any]], depth: int) -> None:
        """Take note of objects' values, each under its key."""
        columns: dict[str, list[Any]] = {}
        for value in objects:
            for name, item in value.items():
                columns.setdefault(name, []).append(item)
        for name, column in columns.items():
            self.fields.setdefault(name, _Seen()).add(column, depth + 1)

    def arrow_type(self) -> pa.DataType | None:
        """Return the type that holds every value exactly; None where there is none."""
        types = self.types - {NoneType}
        if self.unbounded:
            return None
        if types <= {str}:
            return pa.string()
        if types == {bool}:
            return pa.bool_()
        if types == {int}:
            return pa.int64() if self.lowest >= -(2**63) and self.highest < 2**63 else None
        if types == {float} or types == {int, float}:
            return pa.float64() if self.lowest >= -(2**53) and self.highest <= 2**53 else None
        if types == {list} and self.items is not None:
            item = self.items.arrow_type()
            return None if item is None else pa.list_(item)
        if types == {dict} and self.fields:
            fields = [(name, column.arrow_type()) for name, column in self.fields.items()]
            return None if any(kind is None for _, kind in fields) else pa.struct(fields)
        return None
