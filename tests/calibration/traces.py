"""Traces without a model: rows whose heads wander towards their last answer."""

import torch

import pabee_fast as pf
from pabee_fast.policies import AnswerKind
from pabee_fast.scoring.conditions import Conditions

CONDITIONS = Conditions(model="made up", tokenizer="made up", dtype="float32", max_length=32, texts=1)


def made_up(rows: int = 40, layers: int = 6, classes: int = 3, seed: int = 0, kind: AnswerKind = "label") -> pf.Trace:
    """Random walks over the layers, with random lengths and the last head's answers as labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, rows, classes, generator=generator).cumsum(0)
    last = logits[-1]
    labels = last[:, 0] if kind == "value" else (last > 0).long() if kind == "label_set" else last.argmax(dim=1)
    return pf.Trace(logits, torch.randint(1, 30, (rows,), generator=generator), kind, CONDITIONS, labels)
