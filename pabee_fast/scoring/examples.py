"""Examples of tables, labelled or not, and their tokens."""

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.scoring.labels import Column
from pabee_fast.tables.files import find_files
from pabee_fast.tables.open import Table
from pabee_fast.tables.read import USUAL, Reading
from pabee_fast.tables.remote import File
from pabee_fast.tables.source import Source

NO_CLASS = -1
"""What Hugging Face's datasets hold where a row has none of the classes that their schema names."""
Features = list[dict[str, Any]]


@dataclass(frozen=True)
class Examples:
    """The texts of tables and their label column, in input order; the column is empty where none was asked for."""

    texts: list[tuple[str, ...]]
    column: Column

    def features(self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[Any]) -> Features:
        """Return one dict a row: the tokenizer's lists, cut at `max_length` tokens, and `labels`."""
        columns = [list(column) for column in zip(*self.texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        rows = zip(*encoded.values(), labels, strict=True)
        return [dict(zip([*encoded, "labels"], row, strict=True)) for row in rows]


def open_tables(named: str | Path, text_columns: Sequence[str], reading: Reading = USUAL) -> list[Table]:
    """Return the tables of a file, a directory, a glob or a saved dataset, all of one format and the same columns.

    Args:
        reading: how csv and tsv are read.

    Raises:
        InputError: nothing is there, or it cannot be read as that.
    """
    return Source(find_files([str(named)]), text_columns, reading=reading).tables


def read_examples(
    named: str | Path, text_columns: Sequence[str], label_column: str | None, reading: Reading = USUAL
) -> Examples:
    """Read the tables of a file, a directory, a glob or a saved dataset whole.

    Raises:
        InputError: no rows, a missing column, or a row with an error or without a label; it names the row, from 1.
    """
    tables = open_tables(named, text_columns, reading)
    if label_column is not None:
        _check_label_column(named, tables, label_column)
    texts: list[Any] = []
    labels: list[Any] = []
    files: list[tuple[int, str]] = []
    for table in tables:
        first, where = len(texts), _where(table.path, label_column)
        files.append((first, where))
        for chunk in table:
            start = len(texts) - first + 1
            for row, error in enumerate(chunk.errors, start):
                if error is not None:
                    raise InputError(f"{table.path}, row {row}: {error}; correct the row or leave it out")
            if label_column is not None:
                values = chunk.batch.column(label_column).to_pylist()
                for row, value in enumerate(values, start):
                    if value is None or (isinstance(value, float) and not math.isfinite(value)):
                        raise InputError(f"{where}, row {row}: no label ({value!r}); correct the row or leave it out")
                labels += values
            texts += chunk.texts
    if not texts:
        raise InputError(f"{named} has no rows")
    names = _class_names(tables, label_column)
    return Examples(
        texts, Column(labels, _where(named, label_column), _is_text(tables, label_column), files, names=names)
    )


def _where(path: str | File, label_column: str | None) -> str:
    """Return what messages call a label column."""
    return str(path) if label_column is None else f"{path}, column {label_column!r}"


def _is_text(tables: Sequence[Table], label_column: str | None) -> bool:
    return label_column in tables[0].untyped


def _check_label_column(named: str | Path, tables: Sequence[Table], name: str, instead: str = "") -> None:
    """Raise InputError where there is no such column, or JSON Lines hold it in types that differ."""
    if name not in (columns := tables[0].schema.names):
        raise InputError(
            f"{tables[0].path} has no label column {name!r}; its columns are {', '.join(columns)}: name one by "
            f"--label-column{instead}"
        )
    if any(name in table.mixed and table.rows for table in tables):
        raise InputError(
            f'{_where(named, name)} holds values of several types, such as 1 and "1", so that one label may be two: '
            "write all as numbers, or all as strings"
        )


def _class_names(tables: Sequence[Table], column: str | None) -> tuple[str, ...]:
    """Return what Hugging Face's datasets wrote into the tables' schemas: what a column's numbers stand for.

    Returns:
        Names by number; () where the tables say nothing, or call numbers by themselves.

    Raises:
        InputError: tables that differ in it.
    """
    each = {table.path: _names_in(table.schema, column) for table in tables}
    first, *others = dict.fromkeys(each.values())
    if others:
        one, other = (next(path for path, names in each.items() if names == told) for told in (first, others[0]))
        raise InputError(
            f"column {column!r}: {one} names its numbers {', '.join(first) or 'by nothing'}, and {other} "
            f"{', '.join(others[0]) or 'by nothing'}; files that are read as one table must name them alike"
        )
    return () if first == tuple(map(str, range(len(first)))) else first


def _names_in(schema: pa.Schema, column: str | None) -> tuple[str, ...]:
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        (feature,) = feature if isinstance(feature, list) else (feature,)  # a list is written in two ways
        names = feature.get("feature", feature)["names"]
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return tuple(names) if is_list else ()
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()  # no metadata, another kind of column, or not as datasets writes it


class Scorable:
    """The texts of tables' rows that can be scored, in input order; iterating reads them anew, a chunk at a time.

    `left_out` counts the others, once all has been read.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables, self.left_out = tables, 0

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        self.left_out = 0
        for chunk in chain.from_iterable(self.tables):
            for text, error in zip(chunk.texts, chunk.errors, strict=True):
                if is_scorable(text, error):
                    yield cast(tuple[str, ...], text)
                else:
                    self.left_out += 1


def is_scorable(text: tuple[str | None, ...], error: str | None) -> bool:
    """Return whether a table's row has all its texts."""
    return error is None and None not in text


def labels_where_given(named: str | Path, tables: Sequence[Table], label_column: str) -> Column:
    """Return the labels of the rows that are scorable, None where a row has none (null, NaN, or NO_CLASS).

    Raises:
        InputError: no such column.
    """
    _check_label_column(named, tables, label_column, ", or leave the option out")
    is_text, names = _is_text(tables, label_column), _class_names(tables, label_column)
    column: list[Any] = []
    files: list[tuple[int, str]] = []
    rows = array("q")
    for table in tables:
        files.append((len(column), _where(table.path, label_column)))
        start = 1
        for chunk in table:
            values = chunk.batch.column(label_column).to_pylist()
            given = zip(chunk.texts, values, chunk.errors, strict=True)
            for row, (text, value, error) in enumerate(given, start):
                if is_scorable(text, error):
                    is_nan = str(value).lower() == "nan" and (is_text or isinstance(value, float))
                    is_missing = is_nan or (bool(names) and value == NO_CLASS)
                    column.append(None if is_missing else value)
                    rows.append(row)
            start += len(values)
    return Column(column, _where(named, label_column), is_text, files, rows, names, optional=True)
