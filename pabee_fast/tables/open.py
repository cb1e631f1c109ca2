"""Tables of texts, read and written in chunks: csv, tsv, JSON Lines and parquet, chosen by suffix. Arrow IPC is read.

Memory is bounded by one chunk and does not grow with the table. A scoring command in outline:

    table = open_table("reviews.csv", ["text"])
    names = check_names(table.schema, ["label", "exit_layer"], prefix="pabee_")
    with write_table("scored.parquet", table.schema, results_schema, source=table.path) as writer:
        for chunk in table:
            writer.write(chunk, results_of(chunk))

What a table is stands in `read`, each format's reader in a file of its own, the writers in `write`.
"""

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from pabee_fast.errors import InputError
from pabee_fast.tables.bytes import compression, open_bytes
from pabee_fast.tables.csv import CsvTable
from pabee_fast.tables.jsonl import JsonTable
from pabee_fast.tables.parquet import ArrowTable, ParquetTable
from pabee_fast.tables.read import USUAL, Chunk, Reading, Table, table_format
from pabee_fast.tables.remote import File, Remote, named
from pabee_fast.tables.write import TableWriter, check_names, check_output, write_table

__all__ = [
    "Chunk",
    "Reading",
    "Table",
    "TableWriter",
    "check_names",
    "check_output",
    "open_table",
    "table_format",
    "write_table",
]

TEXT_FORMATS = ("csv", "tsv")
"""Tables whose values are all strings."""

_TABLES: dict[str, type[Table]] = {
    "jsonl": JsonTable,
    "parquet": ParquetTable,
    "arrow": ArrowTable,
}
CHUNK_ROWS = 16_384
CHUNK_BYTES = 32 * 2**20


def open_table(
    path: str | os.PathLike[str] | Remote,
    text_columns: Sequence[str],
    *,
    chunk_rows: int = CHUNK_ROWS,
    chunk_bytes: int = CHUNK_BYTES,
    reading: Reading = USUAL,
) -> Table:
    """Open a table for reading, at a path or a URL that fsspec knows; its suffix names the format.

    csv, tsv: every column is read as strings, so that nothing is reinterpreted: "NA", "null" and "007" stay as written
    and an empty field is an empty text. Quoting follows RFC 4180 (a field in double quotes may hold delimiters, line
    breaks and doubled quotes), for tsv too, where it can; see `Reading`. A record with too few or too many fields keeps
    those that have a column and gets an error; one that does not parse loses its first line to an error, of tsv has its
    quotes read as characters, and reading goes on with the next line. Blank lines are not rows.

    jsonl, ndjson: opening reads the file once to count the rows and learn the columns: all keys of all objects, in
    order of first appearance. A column's type is inferred from all its values, nested ones too; where the values share
    no type, it becomes a column of JSON texts. Blank lines are not rows; a line that is not a JSON object is a row with
    an error whose columns are null.

    Text formats may be compressed: .gz, .bz2 or .zst after the format's suffix.

    parquet, arrow: types are kept. A text column may be string, large string, string view or a dictionary of those; of
    any other type, every row gets an error.

    Invalid UTF-8, or what `reading` says in its place, gives the row an error; its column holds U+FFFD in place of the
    bytes (null where it is nested).

    text_columns  one name, or two for pairs
    chunk_rows    most rows in a chunk
    chunk_bytes   most bytes in a chunk, unless one row is larger (of parquet, what it decodes to)
    reading       how csv and tsv are read; of other formats it must be the usual

    Raises InputError for an unknown suffix, a file that cannot be read, a missing text column, columns of one name.
    """
    if isinstance(text_columns, str) or len(text_columns) not in (1, 2):
        raise InputError(f"text_columns must be a list of one or two column names, not {text_columns!r}")
    if chunk_rows < 1 or chunk_bytes < 1:
        raise InputError(f"chunk_rows and chunk_bytes must be at least 1, not {chunk_rows} and {chunk_bytes}")
    path = path if isinstance(path, Remote) else named(os.fspath(path))
    kind = check_file(path, reading)
    given = (path, tuple(text_columns), chunk_rows, chunk_bytes)
    return CsvTable(*given, reading) if kind in TEXT_FORMATS else _TABLES[kind](*given)


def check_file(path: File, reading: Reading = USUAL) -> str:
    """Return the format of a file to read.

    Raises InputError where it is no file, cannot be read, is of no known format, or not of one that `reading` is about.
    """
    kind = table_format(path)
    if compression(path) and kind in ("parquet", "arrow"):
        raise InputError(f"{path}: {kind} files are compressed inside; decompress this one first")
    if kind not in TEXT_FORMATS and (given := reading.settings()):
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"{told}: for csv and tsv, and {path} is {kind}; leave it out")
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give a table file")
    try:
        with open_bytes(path) as file:
            start = file.read(2)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and not reading.encoding.startswith(("utf-16", "utf-32")):
        fix = "give --encoding utf-16" if kind in TEXT_FORMATS else "convert it to UTF-8 first"
        raise InputError(f"{path} is UTF-16; {fix}")
    return kind
