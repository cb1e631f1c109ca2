"""Tables whose neighbouring rows of one first text, candidates of a query, are a list that no chunk cuts."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pabee_fast.tables.read import Chunk, Place, Table


def runs(queries: pa.Array) -> np.ndarray:
    """Return which list each row belongs to, [rows] int64 from 0: neighbouring rows of one query are a list.

    Args:
        queries: [rows] strings; a row without one belongs to the list of the row before it.
    """
    codes = pc.fill_null_forward(queries).dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(codes[1:] != codes[:-1])])[: len(codes)].astype(np.int64)


class WholeLists(Table):
    """A table whose chunks hold whole lists; a list that is longer than a chunk is a chunk of its own."""

    def __init__(self, inside: Table) -> None:
        super().__init__(inside.path, inside.text_columns, inside.chunk_rows, inside.chunk_bytes)
        self._inside = inside
        self.opened, self.schema, self.size, self.rows = inside.opened, inside.schema, inside.size, inside.rows
        self.mixed, self.untyped = inside.mixed, inside.untyped

    def chunks(self, start: Place) -> Iterator[Chunk]:
        while (chunk := self._next(start)) is not None:
            yield chunk
            start = chunk.end

    def _next(self, start: Place) -> Chunk | None:
        """Return the lists from `start` on that are whole within a chunk of the table's size, or the first one."""
        rows, size = self.chunk_rows, self.chunk_bytes
        while True:
            self._inside.chunk_rows, self._inside.chunk_bytes = rows, size
            with closing(self._inside.chunks(start)) as chunks:  # type: ignore[type-var]
                chunk = next(chunks, None)
                if chunk is None:
                    return None
                is_last = chunk.batch.num_rows < rows and next(chunks, None) is None
            lists = runs(chunk.columns[0])
            if rows > self.chunk_rows:  # the first list is longer than that
                whole = int(np.searchsorted(lists, 0, side="right"))
            else:
                whole = len(lists) if is_last else int(np.searchsorted(lists, lists[-1]))
            if is_last or 0 < whole < len(lists):
                return chunk.head(whole)
            if chunk.columns[0].null_count == len(lists):
                return chunk  # without a query there is no list to keep whole
            rows, size = 2 * rows, 2 * size
