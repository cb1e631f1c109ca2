"""What a model says at full depth, by packed layers and by transformers alone."""

from typing import Any

import torch

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.packed import pack
from tests import zoo

LENGTHS = [7, 1, 12, 30, 12, 5]


def packed_answers(model: Any, variant: str | None = None, lengths: list[int] = LENGTHS) -> torch.Tensor:
    """Logits by packed layers of one variant."""
    engine = Engine(model, layers=variant)
    batch = zoo.rows(model.config.model_type, lengths)
    return engine.run(pack(model, **batch), pf.FullDepth()).logits


def stock_answers(model: Any) -> torch.Tensor:
    """Logits of padded rows by the model's own forward."""
    with torch.no_grad():
        return model(**zoo.rows(model.config.model_type, LENGTHS)).logits
