"""From a label column to what a model learns: problem type, names, numbers. Knows columns and configs, no tables."""

import bisect
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pabee_fast.errors import InputError
from pabee_fast.scoring.answers import label_names
from pabee_fast.scoring.label_sets import BETWEEN, looks_like_list, set_of

logger = logging.getLogger(__name__)

REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)

MOST_WHOLE_VALUES = 20
"""Up to so many different labels, whole but written as floats, may be class ids: pandas writes them so beside a gap."""


@dataclass(frozen=True)
class Column:
    """The labels of tables, one a row, None where there is none.

    Args:
        given: as the tables have them; of csv and tsv (`is_text`) all are strings.
        where: what messages call it.
        files: what messages call the column of each table, and the index of its first label; (): `where`.
        rows: the row of each label in its table, from 1; (): none was left out.
        names: what the tables say that their numbers stand for, by number; (): nothing.
        optional: whether a row may be without a label, which an empty cell then says unless labels are sets.
    """

    given: Sequence[Any]
    where: str
    is_text: bool = False
    files: Sequence[tuple[int, str]] = ()
    rows: Sequence[int] = ()
    names: tuple[str, ...] = ()
    optional: bool = False

    def place(self, index: int) -> str:
        """Return where a label stands, for messages."""
        first, where = 0, self.where
        if self.files:
            first, where = self.files[bisect.bisect(self.files, index, key=lambda file: file[0]) - 1]
        return f"{where}, row {self.rows[index] if self.rows else index - first + 1}"

    def values(self, names: Sequence[str] = ()) -> list[Any]:
        """Return the labels; strings of a text column become numbers where all can, unless all are among `names`.

        Raises:
            InputError: a number that is not finite, or an empty cell where a label must be; it names the row, from 1.
        """
        values = [None if self.optional and value == "" else value for value in self.given]
        if self.is_text and not all(value is None or value in names for value in values):
            values = _as_numbers(values)
        for index, value in enumerate(values):
            if value == "" or (isinstance(value, float) and not math.isfinite(value)):
                raise InputError(f"{self.place(index)}: no label ({value!r}); correct the row or leave it out")
        return values

    def as_sets(self, names: Collection[str] = ()) -> "Column":
        """Return the column with the list that each string says; see `set_of`, to which `names` go."""
        values = [
            set_of(value, names, self.place(index)) if isinstance(value, str) else value
            for index, value in enumerate(self.given)
        ]
        return replace(self, given=values, is_text=False)

    def named(self, labels: Sequence[str]) -> "Column":
        """Return the column with the tables' names in place of its numbers.

        Args:
            labels: the model's, which must have every name that is used.

        Raises:
            InputError: a number without a name, or a name that is no label; it says the row, from 1.
        """

        def name(value: Any, index: int) -> Any:
            if type(value) is not int:
                return value
            if not 0 <= value < len(self.names):
                raise InputError(
                    f"{self.place(index)}: label {value} has no name among the table's own ({_listed(self.names)}); "
                    "correct the row or leave it out"
                )
            if self.names[value] not in labels:
                raise InputError(
                    f"{self.place(index)}: label {value} is called {self.names[value]!r} by the table, and the model's "
                    f"labels are {_listed(labels)}: name them alike, or store the model's ids as plain integers"
                )
            return self.names[value]

        values = [
            [name(item, index) for item in value] if isinstance(value, list) else name(value, index)
            for index, value in enumerate(self.given)
        ]
        return replace(self, given=values, names=())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _as_numbers(column: list[Any]) -> list[Any]:
    """Return strings as ints, or as floats, or unchanged where one is no number; None stays."""
    for number in (int, float):
        try:
            return [None if value is None else number(value) for value in column]
        except ValueError:
            continue
    return column


@dataclass(frozen=True)
class Labels:
    """What a model's outputs mean: one number (regression), or a class each, by name."""

    problem_type: str
    names: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {name: i for i, name in enumerate(self.names)})

    def __str__(self) -> str:
        if not self.names:
            return "a number (regression)"
        what = "classes" if self.problem_type == SINGLE else "labels, of which a row has a set"
        return f"{len(self.names)} {what}: {_listed(self.names)}"

    @property
    def has_names(self) -> bool:
        """Whether the labels are called more than LABEL_0, LABEL_1 and so on, or 0, 1."""
        return any(name not in (f"LABEL_{i}", str(i)) for i, name in enumerate(self.names))

    @property
    def outputs(self) -> int:
        """The model's `num_labels`."""
        return len(self.names) or 1

    def config_entries(self) -> dict[str, Any]:
        """Return what a model's config says of it."""
        if not self.names:
            return {"num_labels": 1, "problem_type": self.problem_type}
        return {"id2label": dict(enumerate(self.names)), "label2id": dict(self.ids), "problem_type": self.problem_type}

    def encode(self, column: Column) -> list[Any]:
        """A column's values as a model is taught them: ids, floats, or a 0/1 list a row; None stays.

        Numbers that the tables name are taken by their names, unless the model's labels have none.

        Raises:
            InputError: a value that is none of these labels; it names the row, counted from 1.
        """
        if column.names and self.has_names:
            if column.names != self.names:
                logger.warning(
                    "%s: its numbers are taken by the names that the table gives them (%s); the model's labels are %s",
                    column.where, _listed(column.names), _listed(self.names),
                )  # fmt: skip
            column = column.named(self.names)
        if self.problem_type == MULTI:
            column = column.as_sets(self.ids)
        values = column.values(self.names)
        if self.problem_type == MULTI and not column.names and multi_hot_length(values) == len(self.names):
            return [None if value is None else [float(item) for item in value] for value in values]
        self._check_one_reading(values, column.where)
        return [
            None if value is None else self._encode(value, column.place(index)) for index, value in enumerate(values)
        ]

    def _check_one_reading(self, values: Sequence[Any], where: str) -> None:
        """Raise InputError for numbers that may all be names of labels and are ids of others, as stars from 1 to 5."""
        items = [item for value in values for item in (value if isinstance(value, list) else [value])]
        numbers = {int(n) for n in items if type(n) is int or (type(n) is float and n.is_integer())}
        if all(str(n) in self.ids for n in numbers) and any(self.ids[str(n)] != n for n in numbers):
            shown = ", ".join(map(str, sorted(numbers)[:8]))
            raise InputError(
                f"{where}: {shown} are names of the model's labels and ids of others ({', '.join(self.names)}); write "
                "them as names, that is as strings"
            )

    def _encode(self, value: Any, where: str) -> Any:
        if self.problem_type == REGRESSION:
            if isinstance(value, int | float):
                return float(value)
            raise InputError(f"{where}: label {value!r} is not a number, and the model answers with one")
        if self.problem_type == SINGLE:
            return self._id(value, where)
        if not isinstance(value, list):
            raise InputError(f"{where}: label {value!r} is not a list, and the model answers with a set of labels")
        chosen = {self._id(item, where) for item in value}
        if len(chosen) < len(value):
            raise InputError(
                f"{where}: label {value!r} holds a label twice; give a set of ids or names, or in every row a 0 or 1 "
                f"for each of the {len(self.names)} labels"
            )
        return [float(i in chosen) for i in range(len(self.names))]

    def _id(self, value: Any, where: str) -> int:
        """A number is an id, a string is a name."""
        if isinstance(value, str):
            if self.names.count(value) > 1:
                raise InputError(f"{where}: several of the model's labels are called {value!r}; give ids")
            if value in self.ids:
                return self.ids[value]
            raise InputError(f"{where}: label {value!r} is none of the model's ({', '.join(self.names)})")
        if isinstance(value, float) and not value.is_integer():
            raise InputError(
                f"{where}: label {value!r} is not a whole number; for regression: --problem-type regression"
            )
        if isinstance(value, list):
            raise InputError(f"{where}: label {value!r} is a list, and the model answers with one label")
        if not isinstance(value, int | float):
            raise InputError(f"{where}: label {value!r} is a {type(value).__name__}: give an id or a name")
        if not 0 <= value < len(self.names):
            raise InputError(
                f"{where}: label {value} is out of range; the model's labels are 0 to {len(self.names) - 1}"
            )
        return int(value)


def labels_of_config(config: Any) -> Labels:
    """Return what a fine-tuned model's config says its outputs mean."""
    if config.num_labels == 1:
        return Labels(REGRESSION)
    return Labels(config.problem_type or SINGLE, tuple(label_names(config)))


def multi_hot_length(values: Sequence[Any]) -> int | None:
    """Return how long the lists are where every row's says of each label, by 0 or 1, whether it is among the row's;
    else None.

    One label alone is an id, so such lists have two entries or more.
    """
    rows = [value for value in values if value is not None]
    lengths = {len(value) if isinstance(value, list) else 0 for value in rows}
    if len(lengths) != 1 or max(lengths) < 2 or any(item not in (0, 1) for row in rows for item in row):
        return None
    return lengths.pop()


def _holds_lists(column: Column, names: Sequence[str]) -> bool:
    """Return whether all strings that are none of `names` are JSON lists; raises InputError where some may be names
    joined, or names."""
    given = [(index, value) for index, value in enumerate(column.given) if isinstance(value, str) and value]
    cells = [(index, value) for index, value in given if value not in names]
    if cells and all(looks_like_list(cell) for _, cell in cells):
        return True
    if joined := [(index, cell) for index, cell in cells if BETWEEN in cell]:
        index, cell = joined[0]
        raise InputError(
            f"{column.place(index)}: label {cell!r} may be a set of labels, or the name of one: say --problem-type "
            f"{MULTI} or {SINGLE}"
        )
    return False


def labels_of_column(column: Column, problem_type: str | None = None, names: tuple[str, ...] = ()) -> Labels:
    """Return what a label column asks of a new model.

    Args:
        column: the labels.
        problem_type: one of PROBLEM_TYPES; None: by the labels.
        names: of the model's labels, in order; (): by the column. Whether it holds others, `Labels.encode` says.

    Whole numbers are class ids, called as the tables name them; other numbers are values, strings names. Lists are
    label sets: of ids, of names, or of a 0 or 1 for every label; so are strings that are JSON lists, and, where the
    problem type says that there are sets, names joined by "|".

    Raises:
        InputError: fewer than two classes, ids that leave gaps, values of several kinds, or another problem type.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"problem_type={problem_type!r}: give one of {', '.join(PROBLEM_TYPES)}")
    if problem_type == MULTI or (problem_type is None and _holds_lists(column, names)):
        column = column.as_sets(names)
    given, where = column.values(names), column.where
    kinds = {"list" if isinstance(v, list) else "name" if isinstance(v, str) else "number" for v in given}
    if len(kinds) > 1:
        raise InputError(f"{where} mixes {' and '.join(sorted(kinds))} values: use one kind")
    values = [item for v in given for item in v] if kinds == {"list"} else given
    if wrong := [v for v in values if not isinstance(v, int | float | str)]:
        raise InputError(f"{where} holds {wrong[0]!r}, a {type(wrong[0]).__name__}: give ids, names or numbers")
    if names:
        if problem_type is None:
            problem_type = MULTI if kinds == {"list"} else SINGLE
        if problem_type == REGRESSION:
            raise InputError(f"{where}: label names are given ({_listed(names)}), and regression has no labels")
        return Labels(problem_type, names)
    if problem_type in (None, MULTI) and not column.names and (labels := multi_hot_length(given)) is not None:
        return Labels(MULTI, tuple(f"LABEL_{i}" for i in range(labels)))
    numeric = all(isinstance(v, int | float) for v in values)
    if problem_type is None:
        fractional = numeric and any(isinstance(v, float) for v in values)
        distinct = set(values) if fractional else set()
        if 0 < len(distinct) <= MOST_WHOLE_VALUES and all(float(v).is_integer() for v in distinct):
            raise InputError(
                f"{where} holds {', '.join(map(str, sorted(distinct)))}, and nothing between: are these classes or "
                f"values? say --problem-type {SINGLE} or {REGRESSION}"
            )
        problem_type = MULTI if kinds == {"list"} else REGRESSION if fractional else SINGLE
    if problem_type == REGRESSION:
        return Labels(REGRESSION)
    classes = sorted(set(values))
    if len(classes) < 2:
        raise InputError(f"{where} holds {len(classes)} class(es): a classifier needs two or more")
    if numeric and column.names:
        return Labels(problem_type, column.names)
    if numeric and classes != list(range(len(classes))):
        raise InputError(
            f"{where} holds the ids {', '.join(map(str, classes[:8]))}: number classes from 0 without gaps, write them "
            "as names, or train a regression by --problem-type regression"
        )
    return Labels(problem_type, tuple(f"LABEL_{int(v)}" if numeric else v for v in classes))
