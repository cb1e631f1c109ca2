"""What a model says at full depth, by packed layers and by transformers alone."""

import copy
from typing import Any

import torch

import pabee_fast as pf
from pabee_fast.models.heads import exit_heads_of
from pabee_fast.runtime import ops
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
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


def exact_heads(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What every head of a model says of padded rows by transformers' own layers in double precision, [layers, rows,
    classes]; each head reads the first token."""
    model = copy.deepcopy(model).cpu().double()
    with torch.no_grad():
        after = model(**batch, output_hidden_states=True).hidden_states[1:]
        heads = zip(exit_heads_of(model), after, strict=True)
        return torch.stack([head.linear(ops.through_pooler(head.pooler, hidden[:, 0])) for head, hidden in heads])


def distance(answers: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference as a share of the largest exact number."""
    return ((answers.cpu().double() - exact).abs().max() / exact.abs().max()).item()
