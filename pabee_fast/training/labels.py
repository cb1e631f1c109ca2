"""From a label column to what a model learns: problem type, names, numbers. Knows columns and configs, no tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pabee_fast.errors import InputError

REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)


@dataclass(frozen=True)
class Labels:
    """What a model's outputs mean: one number (regression), or a class each, by name."""

    problem_type: str
    names: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {name: i for i, name in enumerate(self.names)})

    @property
    def outputs(self) -> int:
        """The model's `num_labels`."""
        return len(self.names) or 1

    def config_entries(self) -> dict[str, Any]:
        """What a model's config says of it."""
        if not self.names:
            return {"num_labels": 1, "problem_type": self.problem_type}
        return {"id2label": dict(enumerate(self.names)), "label2id": dict(self.ids), "problem_type": self.problem_type}

    def encode(self, column: Sequence[Any], where: str) -> list[Any]:
        """A column's values as a model is taught them: ids, floats, or a 0/1 list a row; None stays.

        Raises:
            InputError: a value that is none of these labels; it names the row, counted from 1.
        """
        return [
            None if value is None else self._encode(value, f"{where}, row {row}") for row, value in enumerate(column, 1)
        ]

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
        return [float(i in chosen) for i in range(len(self.names))]

    def _id(self, value: Any, where: str) -> int:
        """A number is an id, a string is a name."""
        if isinstance(value, str):
            if value in self.ids:
                return self.ids[value]
            raise InputError(f"{where}: label {value!r} is none of the model's ({', '.join(self.names)})")
        if isinstance(value, float) and not value.is_integer():
            raise InputError(
                f"{where}: label {value!r} is not a whole number; for regression: --problem-type regression"
            )
        if isinstance(value, list):
            raise InputError(f"{where}: label {value!r} is a list, and the model answers with one label")
        if not 0 <= value < len(self.names):
            raise InputError(
                f"{where}: label {value} is out of range; the model's labels are 0 to {len(self.names) - 1}"
            )
        return int(value)


def labels_of_config(config: Any) -> Labels:
    """What a fine-tuned model's config says its outputs mean."""
    if config.num_labels == 1:
        return Labels(REGRESSION)
    names = tuple(config.id2label[i] for i in range(config.num_labels))
    return Labels(config.problem_type or SINGLE, names)


def labels_of_column(column: Sequence[Any], where: str, problem_type: str | None = None) -> Labels:
    """What a label column asks of a new model.

    Whole numbers are class ids, other numbers values, strings names, lists of ids or names label sets.

    Raises:
        InputError: fewer than two classes, ids that leave gaps, values of several kinds, or another problem type.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"problem_type={problem_type!r}: give one of {', '.join(PROBLEM_TYPES)}")
    kinds = {"list" if isinstance(v, list) else "name" if isinstance(v, str) else "number" for v in column}
    if len(kinds) > 1:
        raise InputError(f"{where} mixes {' and '.join(sorted(kinds))} values: use one kind")
    values = [item for v in column for item in v] if kinds == {"list"} else list(column)
    numeric = all(isinstance(v, int | float) for v in values)
    if problem_type is None:
        fractional = numeric and any(isinstance(v, float) for v in values)
        problem_type = MULTI if kinds == {"list"} else REGRESSION if fractional else SINGLE
    if problem_type == REGRESSION:
        return Labels(REGRESSION)
    classes = sorted(set(values))
    if len(classes) < 2:
        raise InputError(f"{where} holds {len(classes)} class(es): a classifier needs two or more")
    if numeric and classes != list(range(len(classes))):
        raise InputError(
            f"{where} holds the ids {', '.join(map(str, classes[:8]))}: number classes from 0 without gaps, write them "
            "as names, or train a regression by --problem-type regression"
        )
    return Labels(problem_type, tuple(f"LABEL_{int(v)}" if numeric else v for v in classes))
