"""Examples of a table, labelled or not, and their tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.scoring.tables import open_table, table_format

Features = list[dict[str, Any]]


@dataclass(frozen=True)
class Examples:
    """A table's texts and its label column, in input order; the column is empty where none was asked for. `where` names
    it in messages."""

    texts: list[tuple[str, ...]]
    column: list[Any]
    where: str

    def features(self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[Any]) -> Features:
        """One dict a row: the tokenizer's lists, cut at `max_length` tokens, and `labels`."""
        columns = [list(column) for column in zip(*self.texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        rows = zip(*encoded.values(), labels, strict=True)
        return [dict(zip([*encoded, "labels"], row, strict=True)) for row in rows]


def read_examples(path: str | Path, text_columns: Sequence[str], label_column: str | None) -> Examples:
    """Reads a csv, tsv, jsonl or parquet table whole. In csv and tsv, labels that are all numbers are read as numbers.

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
    return Examples(texts, _as_numbers(column) if table_format(path) in ("csv", "tsv") else column, where)


def _as_numbers(column: list[str]) -> list[Any]:
    """The strings of a csv column as ints, or as floats, or unchanged where one is no number."""
    for number in (int, float):
        try:
            return [number(value) for value in column]
        except ValueError:
            continue
    return column
