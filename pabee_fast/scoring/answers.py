"""From logits to what a user reads: label names, probabilities, values, and why there is none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from pabee_fast.errors import InputError
from pabee_fast.policies import AnswerKind
from pabee_fast.scoring.stretches import mean_of, most_of, texts_of


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row's answer.

    `prediction`: the label's name from id2label; in regression the value; of a multi-label model the names of the
    labels whose logit is above 0, joined by "|". `score`: the probability of the predicted label (multi-label: the
    highest one; regression: None). `scores`: every label's probability. A row that could not be scored has an `error`
    and no prediction.
    """

    prediction: str | float | None
    score: float | None
    scores: tuple[float, ...] | None
    exit_layer: int | None
    error: str | None = None


@dataclass
class Answers:
    """What a model said of rows, on the host, in their order; NaN and 0 for a row that was not scored.

    logits       [rows, classes] float32
    exit_layers  [rows] int64, 1-based
    errors       by row: why it has no answer
    refused      how many rows had their error before anything was computed
    truncated    how many rows were cut
    long         how many rows were read in several stretches
    stretches    in how many, of these together
    """

    logits: Tensor
    exit_layers: Tensor
    errors: dict[int, str]
    refused: int = 0
    truncated: int = 0
    long: int = 0
    stretches: int = 0

    @classmethod
    def none_yet(cls, rows: int, errors: Mapping[int, str], classes: int) -> "Answers":
        """Make room for the answers of rows, those that have an error already included."""
        logits, exit_layers = torch.full((rows, classes), float("nan")), torch.zeros(rows, dtype=torch.int64)
        return cls(logits, exit_layers, dict(errors), len(errors))

    @property
    def scorable(self) -> np.ndarray:
        """The places of the rows without an error, [rows without] int64, in order."""
        return np.delete(np.arange(len(self.exit_layers)), list(self.errors))

    def together(self, stretches: np.ndarray | None) -> "Answers":
        """Return what is said of rows that were read in stretches, whose answers these are.

        Args:
            stretches: [rows] int64, how many each row has; None: these are the rows' own.
        """
        if stretches is None:
            return self
        counts = torch.from_numpy(stretches)
        rows = texts_of(counts).tolist()
        errors = {rows[stretch]: error for stretch, error in self.errors.items()}
        exit_layers = most_of(self.exit_layers, counts)
        exit_layers[list(errors)] = 0
        return Answers(mean_of(self.logits, counts), exit_layers, errors)

    def put(self, rows: np.ndarray, answers: "Answers") -> None:
        """Put the answers of some of the rows in their places."""
        where = torch.from_numpy(rows)
        self.logits[where], self.exit_layers[where] = answers.logits, answers.exit_layers
        self.errors |= {int(rows[row]): error for row, error in answers.errors.items()}

    def refuse(self, rows: np.ndarray, error: str) -> None:
        """Give some of the rows their error, before they are computed."""
        self.errors |= dict.fromkeys(rows.tolist(), error)
        self.refused += len(rows)

    def mark_not_finite(self) -> None:
        """Give rows whose logits are not finite their error."""
        wrong = ~self.logits.isfinite().all(dim=1) & (self.exit_layers > 0)
        for row in wrong.nonzero().flatten().tolist():
            self.errors[row] = f"logits are not finite at layer {int(self.exit_layers[row])}"


def label_names(config: PretrainedConfig) -> list[str]:
    """Return the labels' names by index.

    Raises:
        InputError: a label without a name.
    """
    if absent := [i for i in range(config.num_labels) if i not in config.id2label]:
        raise InputError(
            f"id2label of the model's config names {', '.join(map(str, config.id2label))}, and no label {absent[0]}: "
            f"number its {config.num_labels} labels from 0 without gaps, in label2id too"
        )
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def row_results(answers: Answers, names: Sequence[str], kind: AnswerKind) -> list[RowResult]:
    """Return the rows' answers one by one; `names` are the labels', `kind` is what an answer is."""
    exits = [layer or None for layer in answers.exit_layers.tolist()]
    if kind == "value":
        rows: Iterable[tuple[Any, Any, Any]] = [(value, None, None) for value in answers.logits[:, 0].tolist()]
    else:
        best, probabilities = named(answers.logits, names, kind)
        each = [tuple(row) for row in probabilities.tolist()]
        rows = zip(best, probabilities.amax(dim=1).tolist(), each, strict=True)
    return [
        failed(answers.errors[row], exit_layer) if row in answers.errors else RowResult(*answer, exit_layer)
        for row, (answer, exit_layer) in enumerate(zip(rows, exits, strict=True))
    ]


def failed(error: str, exit_layer: int | None = None) -> RowResult:
    """Return a row without an answer."""
    return RowResult(None, None, None, exit_layer, error)


def named(logits: Tensor, names: Sequence[str], kind: AnswerKind) -> tuple[np.ndarray, Tensor]:
    """Return [rows] the labels' names, and [rows, classes] the labels' probabilities."""
    if kind == "label":
        return np.array(names, dtype=object)[logits.argmax(dim=1).numpy()], logits.softmax(dim=1)
    sets = [set_name(names, row) for row in (logits > 0).tolist()]
    return np.array(sets, dtype=object), logits.sigmoid()


def set_name(names: Sequence[str], inside: Sequence[float]) -> str:
    """Return what a set of labels is called; `inside` says of each label, by true or 1, whether it is in it."""
    return "|".join(name for name, is_in in zip(names, inside, strict=True) if is_in)
