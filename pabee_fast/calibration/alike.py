"""Heads that answer alike whatever the row: they tell nothing apart, and a row that leaves there gets their one answer.

Untrained heads are such, and those that read a token in which an early layer has put nothing yet.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from pabee_fast.calibration.risks import answers
from pabee_fast.policies import AnswerKind

ALIKE = 0.95
"""The share of rows with one answer from which on a head, or full depth, is said to answer alike."""
NEAR = 0.1
"""Of full depth's standard deviation: how far from their median values count as one answer."""
LEAST_ROWS, MOST_ROWS = 50, 4_096
"""With fewer rows nothing is said, and of more these tell enough."""


def share_alike(logits: Tensor, kind: AnswerKind, full: Tensor) -> float:
    """Return the share of rows that have a head's most frequent answer.

    Args:
        logits: the head's, [rows, classes].
        full: those at full depth, by whose spread values are one answer or several.
    """
    if kind == "value":
        values, near = logits[:, 0].double(), NEAR * full[:, 0].double().std(correction=0)
        return float(((values - values.median()).abs() <= near).double().mean())
    _, counts = torch.unique(answers(logits, kind), dim=0, return_counts=True)
    return float(counts.max()) / len(logits)


def alike_layers(logits: Sequence[Tensor], kind: AnswerKind, first_layer: int = 1) -> list[int]:
    """Return the layers whose heads answer nearly all rows alike, although full depth tells more of them apart.

    Args:
        logits: of every head from `first_layer`'s on, [rows, classes] each, full depth's last.
    """
    full = logits[-1]
    if len(full) < LEAST_ROWS:
        return []
    apart = 1 - share_alike(full, kind, full)
    shares = ((layer, share_alike(of_head, kind, full)) for layer, of_head in enumerate(logits[:-1], first_layer))
    return [layer for layer, share in shares if share >= ALIKE and 1 - share < apart / 2]


def warn_of_alike_heads(
    logger: logging.Logger, logits: Sequence[Tensor], kind: AnswerKind, first_layer: int = 1
) -> None:
    """Warn where `told_of_alike_heads` tells of some."""
    if said := told_of_alike_heads(logits, kind, first_layer):
        logger.warning(said)


def told_of_alike_heads(logits: Sequence[Tensor], kind: AnswerKind, first_layer: int = 1) -> str:
    """Say of which layers the heads answer alike, and what to do; "" where none do. Looks at MOST_ROWS rows at most."""
    layers = alike_layers([of_head[:MOST_ROWS] for of_head in logits], kind, first_layer)
    if not layers:
        return ""
    several = len(layers) > 1
    heads = f"heads of layers {', '.join(map(str, layers))} answer" if several else f"head of layer {layers[0]} answers"
    return (
        f"the {heads} {ALIKE:.0%} of the rows or more alike, although full depth tells more of them apart: rows that "
        "leave there get that one answer. `pabee-fast fit` gives heads that tell more (linear, over the mean token)"
    )
