"""From logits to what a user reads: label names, probabilities, values, and why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from pabee_fast.policies import AnswerKind


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


Answer = tuple[str | float, float | None, tuple[float, ...] | None]
"""Prediction, score, scores: what a RowResult begins with."""


def label_names(config: PretrainedConfig) -> list[str]:
    """The labels' names by index."""
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def row_results(logits: Tensor, exit_layers: Tensor, config: PretrainedConfig, kind: AnswerKind) -> list[RowResult]:
    """The answers of rows.

    Args:
        logits: [rows, classes] float32.
        exit_layers: [rows] int64.
        config: the model's, for its label names.
        kind: what an answer is.
    """
    logits, exits = logits.cpu(), exit_layers.tolist()
    finite = logits.isfinite().all(dim=1).tolist()
    if kind == "value":
        answers: Sequence[Answer] = [(value, None, None) for value in logits[:, 0].tolist()]
    else:
        answers = _named(logits, label_names(config), kind)
    return [
        RowResult(*answer, exit_layer) if ok else failed(f"logits are not finite at layer {exit_layer}", exit_layer)
        for answer, exit_layer, ok in zip(answers, exits, finite, strict=True)
    ]


def failed(error: str, exit_layer: int | None = None) -> RowResult:
    """A row without an answer."""
    return RowResult(None, None, None, exit_layer, error)


def _named(logits: Tensor, names: list[str], kind: AnswerKind) -> list[Answer]:
    if kind == "label":
        probabilities = logits.softmax(dim=1)
        best = [names[i] for i in logits.argmax(dim=1).tolist()]
    else:
        probabilities = logits.sigmoid()
        best = ["|".join(n for n, is_in in zip(names, row, strict=True) if is_in) for row in (logits > 0).tolist()]
    highest, rows = probabilities.amax(dim=1).tolist(), map(tuple, probabilities.tolist())
    return list(zip(best, highest, rows, strict=True))
