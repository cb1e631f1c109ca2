"""What a job reads: files as one long table, cut into parts.

Knows files, rows and parts; knows nothing of models or of output.
"""

import base64
import hashlib
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.tables.count import RowCount
from pabee_fast.tables.files import Found
from pabee_fast.tables.folders import InFolders
from pabee_fast.tables.jsonl import JsonTable, scan_json
from pabee_fast.tables.lists import WholeLists
from pabee_fast.tables.open import CHUNK_BYTES, CHUNK_ROWS, check_file, open_table
from pabee_fast.tables.read import USUAL, Chunk, Place, Reading, Table, table_format
from pabee_fast.tables.remote import File, Remote

_SAMPLE = 64 * 2**10


@dataclass(frozen=True)
class Part:
    """A range of a file's rows, the one unit of planning, durability, retry and distribution.

    index, file  its number in the job, its input file's
    first_row    its first row's number in that file
    rows, end    how many rows, and where the next part begins
    """

    index: int
    file: int
    first_row: int
    rows: int
    end: Place


Parts = Generator[tuple[Part, Chunk], None, None]


class Source:
    """Files of one format and the same columns, as one table.

    Args:
        paths: of the files, in the order of their rows; each may come with what its folders say of all its rows.
        text_columns: one name, or two for pairs.
        scan: what `scan` gave when the same files were opened before, so that they need not be read to be opened.
        reading: how csv and tsv are read.
        whole_lists: whether neighbouring rows of one first text are a list, which no part cuts.

    Raises:
        InputError: a file that cannot be read or has other columns than the first, or no text column; or a folder that
            names a column that is in the file.
    """

    def __init__(
        self,
        paths: Sequence[File] | Found,
        text_columns: Sequence[str],
        scan: Any = None,
        reading: Reading = USUAL,
        *,
        whole_lists: bool = False,
    ) -> None:
        self.paths = list(paths)
        kinds = {table_format(path) for path in self.paths}
        if len(kinds) > 1:
            raise InputError(f"the input files are {', '.join(sorted(kinds))}: give files of one format")
        self._read = (
            _open_json(self.paths, text_columns, scan, reading)
            if kinds == {"jsonl"}
            else [open_table(path, text_columns, reading=reading) for path in self.paths]
        )
        said = paths if isinstance(paths, Mapping) else {}
        self.tables = [InFolders.of(table, said.get(table.path, {})) for table in self._read]
        if whole_lists:
            self.tables = [WholeLists(table) for table in self.tables]
        self.schema = self.tables[0].schema
        for table in self.tables[1:]:
            if not table.schema.equals(self.schema):
                raise InputError(
                    f"{table.path} has the columns {_told(table.schema)}, and {self.tables[0].path} has "
                    f"{_told(self.schema)}: files that are read as one table must have the same"
                )
        self.names = _names(self.paths)
        self._count = RowCount(self.tables)

    @property
    def folder_columns(self) -> list[str]:
        """The columns that folders name."""
        return self.schema.names[len(self._read[0].schema) :]

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where only reading them all would tell."""
        known = [table.rows for table in self.tables if table.rows is not None]
        return sum(known) if len(known) == len(self.tables) else None

    def total(self) -> tuple[int | None, bool]:
        """Return how many rows there are, and whether that is estimated from those that `parts` has read; None where
        even that cannot be."""
        return self._count.total()

    def scan(self) -> Any:
        """Return what opening has learnt by reading, as JSON; None where it needs no reading."""
        if not isinstance(self._read[0], JsonTable):
            return None
        types = [(name, kind or pa.null()) for name, kind in self._read[0].types.items()]
        columns = base64.b64encode(pa.schema(types).serialize()).decode()
        return {"columns": columns, "rows": [table.rows for table in self.tables]}

    def identity(self, directory: Path) -> list[dict[str, Any]]:
        """Return what tells these inputs from others: what `outwardly` says, and a hash of samples, since the time of
        writing may stay the same, and samples do not see all of a large file."""
        return [{**outwardly(path, directory), "sample": _sample(path)} for path in self.paths]

    def parts(self, part_rows: int, part_bytes: int, done: Mapping[int, Part]) -> Parts:
        """Yield the parts that are not done yet, each with its rows, in order.

        Which rows a part holds depends only on the files and the two sizes. Rows of done parts are not read, except
        those between two parts whose records are missing.

        Raises:
            InputError: a file that changed since it was opened, once it is read.
        """
        index = 0
        for file, table in enumerate(self.tables):
            table.chunk_rows, table.chunk_bytes = part_rows, part_bytes
            place, row = Place(), 0
            while True:
                while index in done and done[index].file == file:
                    place, row = done[index].end, row + done[index].rows
                    self._count.read_to(file, row, place.at)
                    index += 1
                read = False
                for chunk in table.chunks(place):
                    read = True
                    place = chunk.end
                    self._count.read_to(file, row + chunk.batch.num_rows, place.at)
                    yield Part(index, file, row, chunk.batch.num_rows, place), chunk
                    index, row = index + 1, row + chunk.batch.num_rows
                    if index in done:
                        break
                if not read or index not in done or done[index].file != file:
                    break
            table.check_read(row)
            self._count.read_all(file, row)


def column_of(path: object, column: str | None) -> str:
    """Return what messages call a column of a table."""
    return str(path) if column is None else f"{path}, column {column!r}"


def check_label_column(named: object, tables: Sequence[Table], name: str, instead: str = "") -> None:
    """Raise InputError where tables have no such column, or JSON Lines hold it in types that differ.

    Args:
        named: what the user calls the tables.
        instead: what else may be done than naming another column.
    """
    if name not in (columns := tables[0].schema.names):
        raise InputError(
            f"{tables[0].path} has no label column {name!r}; its columns are {', '.join(columns)}: name one by "
            f"--label-column{instead}"
        )
    if any(name in table.mixed and table.rows for table in tables):
        raise InputError(
            f'{column_of(named, name)} holds values of several types, such as 1 and "1", so that one label may be two: '
            "write all as numbers, or all as strings"
        )


def _open_json(paths: Sequence[File], text_columns: Sequence[str], scan: Any, reading: Reading) -> list[Table]:
    """JSON Lines files whose columns are those of all of them together."""
    if len(paths) == 1 and scan is None:
        return [open_table(paths[0], text_columns, reading=reading)]
    for path in paths:
        check_file(path, reading)
    if scan is not None:
        read = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(scan["columns"])))
        columns = {field.name: None if pa.types.is_null(field.type) else field.type for field in read}
        rows = scan["rows"]
    else:
        found = scan_json(paths, text_columns, CHUNK_ROWS, CHUNK_BYTES)
        columns, rows = found.columns, found.rows
    return [
        JsonTable(path, tuple(text_columns), CHUNK_ROWS, CHUNK_BYTES, columns, count)
        for path, count in zip(paths, rows, strict=True)
    ]


def outwardly(path: File, directory: Path) -> dict[str, Any]:
    """Return what tells a file from others without reading it, as JSON: its path relative to a directory, or its URL;
    its size; when it was written, in nanoseconds, or the version that a remote file system tells, None where it
    tells none."""
    if isinstance(path, Remote):
        size, version = path.state() or (None, "")
        return {"path": str(path), "size": size, "modified": version or None}
    found = path.stat()
    relative = Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
    return {"path": relative, "size": found.st_size, "modified": found.st_mtime_ns}


def _sample(path: File) -> str:
    """Return a hash over a file's beginning, middle and end; of a remote one over its beginning, beside its version."""
    digest = hashlib.sha256()
    size = None if isinstance(path, Remote) else path.stat().st_size
    with path.open("rb") as file:
        for start in (0,) if size is None else (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _names(paths: Sequence[File]) -> list[str]:
    """Return the files' names below the directory that all lie in."""
    parts = [path.parts if isinstance(path, Remote) else Path(os.path.abspath(path)).parts for path in paths]
    folders = zip(*(whole[:-1] for whole in parts), strict=False)
    above = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, folders))
    return ["/".join(whole[above:]) for whole in parts]


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type}{'' if field.nullable else ' not null'})" for field in schema)
