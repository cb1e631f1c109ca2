"""Columns that stand in the names of folders: rows of a file in `lang=en/` have the column `lang`, and `en` in it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.tables.jsonl import json_text
from pabee_fast.tables.read import Chunk, Place, Table, quoted

Said = Mapping[str, str | None]
"""What folders say of a file's rows: values by column, None for null."""


class InFolders(Table):
    """A table, and after its own columns those that its folders name, as strings.

    Raises:
        InputError: the table has a column of such a name.
    """

    def __init__(self, inside: Table, said: Said) -> None:
        super().__init__(inside.path, inside.text_columns, inside.chunk_rows, inside.chunk_bytes)
        if taken := [name for name in said if name in inside.schema.names]:
            raise InputError(
                f"{self.path} has the column {quoted(taken)}, which the name of a folder gives too; rename one of both"
            )
        self.opened = inside.opened
        self._inside, self._values = inside, list(said.values())
        self.size = inside.size
        self.rows, self.mixed, self.untyped = inside.rows, inside.mixed, inside.untyped | said.keys()
        self.schema = inside.schema
        for name in said:
            self.schema = self.schema.append(pa.field(name, pa.string()))
        self._as_json = ", ".join(f"{json_text(name)}: {json_text(value)}" for name, value in said.items())

    @staticmethod
    def of(table: Table, said: Said) -> Table:
        """Return the table as it is where its folders say nothing."""
        return InFolders(table, said) if said else table

    def chunks(self, start: Place) -> Iterator[Chunk]:
        self._inside.chunk_rows, self._inside.chunk_bytes = self.chunk_rows, self.chunk_bytes
        for chunk in self._inside.chunks(start):
            added = [pa.repeat(pa.scalar(value, pa.string()), chunk.batch.num_rows) for value in self._values]
            batch = pa.RecordBatch.from_arrays([*chunk.batch.columns, *added], schema=self.schema)
            lines = None if chunk.lines is None else [line and self._longer(line) for line in chunk.lines]
            yield replace(chunk, batch=batch, lines=lines)

    def _longer(self, line: str) -> str:
        """Return a line's object with the folders' columns at its end."""
        return f"{{{', '.join(filter(None, (line[1:-1].strip(), self._as_json)))}}}"
