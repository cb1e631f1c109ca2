"""Examples of a table, labelled or not, and their tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.scoring.tables import Table, open_table, table_format
from pabee_fast.training.labels import Column

Features = list[dict[str, Any]]

TEXT_FORMATS = ("csv", "tsv")
"""Tables whose values are all strings."""


@dataclass(frozen=True)
class Examples:
    """A table's texts and its label column, in input order; the column is empty where none was asked for."""

    texts: list[tuple[str, ...]]
    column: Column

    def features(self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[Any]) -> Features:
        """One dict a row: the tokenizer's lists, cut at `max_length` tokens, and `labels`."""
        columns = [list(column) for column in zip(*self.texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        rows = zip(*encoded.values(), labels, strict=True)
        return [dict(zip([*encoded, "labels"], row, strict=True)) for row in rows]


def read_examples(path: str | Path, text_columns: Sequence[str], label_column: str | None) -> Examples:
    """Reads a csv, tsv, jsonl or parquet table whole.

    Raises:
        InputError: no rows, a missing column, or a row with an error or without a label; it names the row, from 1.
    """
    table = open_table(path, text_columns)
    if label_column is not None and label_column not in table.schema.names:
        raise InputError(
            f"{path} has no label column {label_column!r}; its columns are {', '.join(table.schema.names)}: "
            "name one by --label-column"
        )
    texts: list[Any] = []
    column: list[Any] = []
    where = f"{path}, column {label_column!r}" if label_column is not None else str(path)
    for chunk in table:
        for row, error in enumerate(chunk.errors, len(texts) + 1):
            if error is not None:
                raise InputError(f"{path}, row {row}: {error}; correct the row or leave it out")
        if label_column is not None:
            values = chunk.batch.column(label_column).to_pylist()
            for row, value in enumerate(values, len(texts) + 1):
                if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
                    raise InputError(f"{where}, row {row}: no label ({value!r}); correct the row or leave it out")
            column += values
        texts += chunk.texts
    if not texts:
        raise InputError(f"{path} has no rows")
    return Examples(texts, Column(column, where, is_text=table_format(path) in TEXT_FORMATS))


class Scorable:
    """The texts of a table's rows that can be scored, in input order; iterating reads it anew, a chunk at a time.

    `left_out` counts the others, once all has been read.
    """

    def __init__(self, table: Table) -> None:
        self.table, self.left_out = table, 0

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        self.left_out = 0
        for chunk in self.table:
            for text, error in zip(chunk.texts, chunk.errors, strict=True):
                if is_scorable(text, error):
                    yield cast(tuple[str, ...], text)
                else:
                    self.left_out += 1


def is_scorable(text: tuple[str | None, ...], error: str | None) -> bool:
    """Whether a table's row has all its texts."""
    return error is None and None not in text


def labels_where_given(table: Table, label_column: str) -> Column:
    """The labels of the rows that are scorable, None where a row has none (null, empty or NaN).

    Raises:
        InputError: no such column.
    """
    column: list[Any] = []
    is_text = table_format(table.path) in TEXT_FORMATS
    for chunk in table:
        if label_column not in chunk.batch.schema.names:
            raise InputError(
                f"{table.path} has no label column {label_column!r}; its columns are "
                f"{', '.join(table.schema.names)}: name one by --label-column, or leave the option out"
            )
        values = chunk.batch.column(label_column).to_pylist()
        for text, value, error in zip(chunk.texts, values, chunk.errors, strict=True):
            if is_scorable(text, error):
                is_nan = str(value).lower() == "nan" and (is_text or isinstance(value, float))
                is_missing = value == "" or is_nan
                column.append(None if is_missing else value)
    return Column(column, f"{table.path}, column {label_column!r}", is_text)
