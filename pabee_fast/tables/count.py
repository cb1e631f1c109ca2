"""How many rows files have that only reading them all would tell, as far as they are read."""

from collections.abc import Sequence

from pabee_fast.tables.read import Table


class RowCount:
    """Counts rows while tables are read, and estimates the rest by bytes. One thread tells it, any may ask."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._exact = [table.rows for table in tables]
        self._read = [(0, 0)] * len(tables)

    def read_to(self, file: int, rows: int, at: int) -> None:
        """Take note that a file's first `rows` rows end at byte `at`."""
        self._read[file] = rows, at
        if at == self._tables[file].size and self._exact[file] is None:
            self._exact[file] = rows

    def read_all(self, file: int, rows: int) -> None:
        """Take note that a file has so many rows."""
        self._exact[file] = rows

    def total(self) -> tuple[int | None, bool]:
        """Return how many rows there are, and whether that is an estimate.

        Rows that are not read yet are taken to be as long, on average, as those that are. None where nothing is read
        yet, or where a file's bytes cannot be told from its size: it is compressed or not UTF-8, or of unknown size.
        """
        rows, seen, seen_bytes, left = 0, 0, 0, 0
        known = list(self._exact)
        for table, exact, (read, at) in zip(self._tables, known, list(self._read), strict=True):
            if table.size is not None:
                seen, seen_bytes = seen + read, seen_bytes + at
            if exact is not None:
                rows += exact
            elif table.size is None:
                return None, False
            else:
                rows, left = rows + read, left + max(table.size - at, 0)
        if None not in known:
            return rows, False
        return (rows + round(left * seen / seen_bytes), True) if seen_bytes else (None, False)
