"""How often a job's answers are right, where its tables have labels: counted part by part, as parts are done."""

from typing import NamedTuple

import numpy as np

from pabee_fast.errors import InputError
from pabee_fast.jobs.worker import Scored
from pabee_fast.scoring.answers import set_name
from pabee_fast.scoring.examples import class_names, holds_texts, label_or_none
from pabee_fast.scoring.labels import REGRESSION, SINGLE, Column, Labels
from pabee_fast.scoring.tally import Tally
from pabee_fast.tables.open import Chunk
from pabee_fast.tables.source import Part, Source, column_of


class Marks:
    """Holds answers against a label column.

    Args:
        labels: what the model's outputs mean.
        source: of the rows.
        column: its name; a row may be without a label there.

    Raises:
        InputError: tables that name the column's numbers differently.
    """

    def __init__(self, labels: Labels, source: Source, column: str) -> None:
        self._labels, self._source, self._column = labels, source, column
        self._names, self._is_text = class_names(source.tables, column), holds_texts(source.tables, column)

    def count(self, part: Part, chunk: Chunk, scored: Scored) -> None:
        """Add a part's labels and right answers to its tally.

        Raises:
            InputError: a label that is none of the model's.
        """
        answers = scored.results.column(scored.results.schema.get_field_index("prediction")).to_pylist()
        given = chunk.batch.column(self._column).to_pylist()
        answered = [row for row, answer in enumerate(answers) if answer is not None]
        column = Column(
            [label_or_none(given[row], self._names, is_text=self._is_text) for row in answered],
            column_of(self._source.paths[part.file], self._column),
            self._is_text,
            rows=[part.first_row + row + 1 for row in answered],
            names=self._names,
            optional=True,
        )
        try:
            wanted = self._labels.encode(column)
        except InputError as error:
            raise InputError(f"{error}; correct it, or leave --label-column out, and the same job goes on") from None
        pairs = [(answers[row], label) for row, label in zip(answered, wanted, strict=True) if label is not None]
        tally = scored.tally
        tally.labelled += len(pairs)
        if self._labels.problem_type == REGRESSION:
            tally.squared += float(np.square([answer - label for answer, label in pairs]).sum())
        else:
            tally.right += sum(answer == self._named(label) for answer, label in pairs)

    def _named(self, label: int | list[float]) -> str:
        """Return a label as an answer's column has it."""
        names = self._labels.names
        return names[label] if self._labels.problem_type == SINGLE else set_name(names, label)  # type: ignore[index, arg-type]


class Rightness(NamedTuple):
    """How right the answers are to rows with a label; None where that is not known, or not of this kind of answer."""

    accuracy: float | None  # of label sets, of whole sets
    mean_squared_error: float | None  # of values


def rightness(tally: Tally, labels: Labels) -> Rightness:
    """Return what a tally says of a model's answers; `labels`: what its outputs mean."""
    if not tally.labelled:
        return Rightness(None, None)
    if labels.problem_type == REGRESSION:
        return Rightness(None, tally.squared / tally.labelled)
    return Rightness(tally.right / tally.labelled, None)
