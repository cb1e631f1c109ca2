"""Queries and candidates out of the tiny tokenizer's words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import pabee_fast as pf
from pabee_fast.reranking.candidates import pairs_of

WORDS = ["a", "and", "bad", "film", "good", "is", "long", "the", "this", "was", "what", "very", "not", "it"]
QUERIES = ["the film", "a good film", "what was this", "very bad", "it is long and not good"]


def documents_of(queries: int, *, most: int = 14, seed: int = 0) -> list[list[str]]:
    """For each query up to so many documents; of the first none."""
    rng = np.random.default_rng(seed)
    sizes = [0, *rng.integers(2, most, queries - 1).tolist()]
    return [[" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(size)] for size in sizes]


def trace_of(
    model: Any, tokenizer: Any, queries: Sequence[str], documents: Sequence[Sequence[str]]
) -> tuple[pf.Trace, torch.Tensor]:
    """What every head says of all pairs, and their lists, renumbered where a query has no document."""
    rows, lists = pairs_of(queries, documents)
    return pf.trace(model, tokenizer, rows), torch.unique_consecutive(torch.from_numpy(lists), return_inverse=True)[1]
