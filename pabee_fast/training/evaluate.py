"""How well every head of a model does on labelled examples."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel

from pabee_fast.modeling.loss import every_head
from pabee_fast.models.heads import answer_kind, spec_of, stock_class
from pabee_fast.policies import AnswerKind
from pabee_fast.scoring.examples import Features


@dataclass(frozen=True)
class LayerScores:
    """One metric of every head, layer 1 first; None for a layer without one."""

    metric: str
    by_layer: tuple[float | None, ...]


def evaluate_layers(
    model: PreTrainedModel, features: Features, collator: DataCollatorWithPadding, *, batch_size: int
) -> list[LayerScores]:
    """Return accuracy of every head; of one-output models mean squared error and Pearson's correlation.

    A label set counts as right where it is right as a whole. The model is left in the mode it came in.

    Args:
        features: tokens and `labels` of each row.
        collator: pads a batch of them.
    """
    logits = torch.cat(list(all_logits(model, features, collator, batch_size)), dim=1)
    order = _by_length(features)
    labels = torch.tensor([features[i]["labels"] for i in order])
    without_head = (None,) * (spec_of(model).first_layer - 1)
    scores = score(logits, labels, answer_kind(model))
    return [LayerScores(column.metric, without_head + column.by_layer) for column in scores]


def score(logits: Tensor, labels: Tensor, kind: AnswerKind) -> list[LayerScores]:
    """Return metrics of logits [layers, rows, classes] by labels [rows], or [rows, classes] of 0 and 1 for label
    sets."""
    if kind == "label":
        return [LayerScores("accuracy", _mean(logits.argmax(-1) == labels))]
    if kind == "label_set":
        return [LayerScores("accuracy", _mean(((logits > 0) == (labels > 0)).all(-1)))]
    values = logits.squeeze(-1).double()
    pearson = torch.corrcoef(torch.cat([labels.double()[None], values]))[0, 1:]
    return [
        LayerScores("mean squared error", _mean((values - labels.double()) ** 2)),
        LayerScores("Pearson", tuple(pearson.tolist())),
    ]


def as_table(title: str, scores: Sequence[LayerScores]) -> Table:
    """Return a line a layer, a column a metric."""
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("layer", justify="right")
    for column in scores:
        table.add_column(column.metric, justify="right")
    for layer, values in enumerate(zip(*(column.by_layer for column in scores), strict=True), 1):
        table.add_row(str(layer), *("-" if value is None else f"{value:.4f}" for value in values))
    return table


@torch.no_grad()
def all_logits(
    model: PreTrainedModel, features: Features, collator: DataCollatorWithPadding, batch_size: int
) -> Iterator[Tensor]:
    """Yield [layers, rows of the batch, classes] float32 on the host, rows by length."""
    cls: Any = stock_class(type(model))
    stock_forward = functools.partial(cls.forward, model)
    order, training = _by_length(features), model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = [{k: v for k, v in features[i].items() if k != "labels"} for i in order[start : start + batch_size]]
        _, logits = every_head(model, stock_forward, **collator(rows).to(model.device))
        yield torch.stack(logits).float().cpu()
    model.train(training)


def _by_length(features: Features) -> list[int]:
    return sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))


def _mean(values: Tensor) -> tuple[float, ...]:
    """Over the rows of [layers, rows]."""
    return tuple(values.double().mean(dim=-1).tolist())
