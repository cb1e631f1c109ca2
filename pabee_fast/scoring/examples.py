"""Examples of tables, labelled or not, and their tokens."""

import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.scoring.labels import Column
from pabee_fast.tables.files import find_files
from pabee_fast.tables.open import Table
from pabee_fast.tables.read import USUAL, Reading
from pabee_fast.tables.source import Source, check_label_column, column_of

NO_CLASS = -1
"""What Hugging Face's datasets hold where a row has none of the classes that their schema names."""
Features = list[dict[str, Any]]


@dataclass(frozen=True)
class Examples:
    """The texts of tables and their label column, in input order; the column is empty where none was asked for."""

    texts: list[tuple[str, ...]]
    column: Column

    @property
    def fingerprint(self) -> str:
        """A hash over texts and labels."""
        digest = hashlib.sha256()
        for row in zip_longest(self.texts, self.column.given):
            digest.update(json.dumps(row, default=str).encode())
        return digest.hexdigest()

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
        check_label_column(named, tables, label_column)
    texts: list[Any] = []
    labels: list[Any] = []
    files: list[tuple[int, str]] = []
    for table in tables:
        first, where = len(texts), column_of(table.path, label_column)
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
    names = class_names(tables, label_column)
    return Examples(
        texts, Column(labels, column_of(named, label_column), holds_texts(tables, label_column), files, names=names)
    )


def holds_texts(tables: Sequence[Table], label_column: str | None) -> bool:
    """Return whether a column's values are strings that may be numbers, as all of csv and tsv are."""
    return label_column in tables[0].untyped


def class_names(tables: Sequence[Table], column: str | None) -> tuple[str, ...]:
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


def label_or_none(value: Any, names: Sequence[str], *, is_text: bool) -> Any:
    """Return a label cell's value, None for one that says that there is none: null, NaN, or NO_CLASS of named numbers;
    `is_text`: of a column that holds strings alone."""
    is_nan = str(value).lower() == "nan" and (is_text or isinstance(value, float))
    return None if is_nan or (bool(names) and value == NO_CLASS) else value


def labels_where_given(named: str | Path, tables: Sequence[Table], label_column: str) -> Column:
    """Return the labels of the rows that are scorable, None where a row has none (null, NaN, or NO_CLASS).

    Raises:
        InputError: no such column.
    """
    check_label_column(named, tables, label_column, ", or leave the option out")
    is_text, names = holds_texts(tables, label_column), class_names(tables, label_column)
    column: list[Any] = []
    files: list[tuple[int, str]] = []
    rows = array("q")
    for table in tables:
        files.append((len(column), column_of(table.path, label_column)))
        start = 1
        for chunk in table:
            values = chunk.batch.column(label_column).to_pylist()
            given = zip(chunk.texts, values, chunk.errors, strict=True)
            for row, (text, value, error) in enumerate(given, start):
                if is_scorable(text, error):
                    column.append(label_or_none(value, names, is_text=is_text))
                    rows.append(row)
            start += len(values)
    return Column(column, column_of(named, label_column), is_text, files, rows, names, optional=True)
