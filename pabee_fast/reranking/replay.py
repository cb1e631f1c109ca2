"""Traces of candidates, and what a shortlist would have done with them, without the model."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pabee_fast.calibration.replay import Replay, one_thread
from pabee_fast.calibration.trace import Trace
from pabee_fast.errors import InputError
from pabee_fast.policies import Policy, Shortlist
from pabee_fast.runtime.lists import bars, scores_of, staying


@dataclass(frozen=True)
class ListTrace:
    """What every head says of candidates, and which lists they are.

    Args:
        trace: of the pairs.
        lists: [rows] int64, the list of each row, from 0 and ascending.
        label: the output by which candidates are ranked.
        relevance: [rows] float32, 0 or more; None: not known.

    Raises:
        InputError: these do not fit together.
    """

    trace: Trace
    lists: Tensor
    label: int = 0
    relevance: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.lists) != len(self.trace) or bool((self.lists.diff() < 0).any()):
            raise InputError(
                f"lists is {list(self.lists.shape)} for {len(self.trace)} rows: give one for each, in order"
            )
        if self.relevance is not None and not bool((self.relevance >= 0).all() and self.relevance.isfinite().all()):
            raise InputError("relevance holds numbers below 0, or none at all: give 0 for what is not relevant")

    def __len__(self) -> int:
        return int(self.lists[-1]) + 1 if len(self.lists) else 0

    @cached_property
    def scores(self) -> Tensor:
        """[layers, rows] float32, by every head."""
        return scores_of(self.trace.logits, self.label)

    @cached_property
    def sizes(self) -> Tensor:
        """[lists] int64, how many candidates each has."""
        return torch.bincount(self.lists, minlength=len(self))

    def select(self, chosen: Tensor) -> "ListTrace":
        """Return some of the lists: [lists] bool."""
        rows = chosen[self.lists]
        _, lists = torch.unique_consecutive(self.lists[rows], return_inverse=True)
        relevance = None if self.relevance is None else self.relevance[rows]
        return ListTrace(self.trace.select(rows), lists, self.label, relevance)

    def ranked(self, scores: Tensor) -> Tensor:
        """Return each row's place in its list by such scores, [rows] int64 from 0, of ties the first row first."""
        order = scores.argsort(descending=True, stable=True)
        order = order[self.lists[order].argsort(stable=True)]
        starts = self.sizes.cumsum(0) - self.sizes
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order)) - starts[self.lists[order]]
        return places

    def best(self, top_k: int) -> Tensor:
        """Return [rows] bool: which rows are among the best `top_k` of their list at full depth."""
        return self.ranked(self.scores[-1].nan_to_num(nan=-torch.inf)) < top_k

    def deficits(self, top_k: int) -> Tensor:
        """Return by how much each row is below the `top_k`-th best of all rows of its list, by every head before the
        last, [layers - 1, rows] float32; 0 where it is not, or is no number."""
        keep = torch.ones(len(self.lists), dtype=torch.int8)
        each = [bars(scores, keep, self.lists, len(self), top_k)[self.lists] - scores for scores in self.scores[:-1]]
        return torch.stack(each).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)


def replay_lists(of: ListTrace, policy: Policy) -> Replay:
    """Return every row's exit layer and logits there, as the runtime would give them under a Shortlist; of any other
    policy, full depth's.

    Raises:
        InputError: the policy does not fit the trace's model.
    """
    trace, layers = of.trace, of.trace.layers
    policy = policy.from_layer(trace.first_layer)
    policy.check(layers, trace.kind, len(trace))
    keep, exits = torch.ones(len(trace), dtype=torch.int8), torch.full((len(trace),), layers)
    with one_thread():
        for layer in range(1, layers) if isinstance(policy, Shortlist) else ():
            if (among := policy.among(layer)) is not None:
                stay = staying(of.scores[layer - 1], keep, of.lists, len(of), among)
                exits[(keep != 0) & (stay == 0)] = layer
                keep = stay
    logits = trace.logits[exits - 1, torch.arange(len(trace))]
    return Replay(logits, exits, trace.lengths, layers, trace.lengths * exits)
