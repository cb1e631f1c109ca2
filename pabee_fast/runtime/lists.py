"""Rows that are compared: the candidates of one query, of which those leave that are far below the best."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pabee_fast.errors import InputError
from pabee_fast.policies import Among, Policy
from pabee_fast.runtime import ops
from pabee_fast.runtime.pack import PackedBatch
from pabee_fast.transfer import to_device


class Given(NamedTuple):
    """What a policy looks at beside what heads say of a row."""

    exit_at: Tensor | None  # [rows] int64, where exits are given
    list_of: Tensor | None  # [rows] int64, where rows are compared: the list of each
    lists: int  # there are so many

    @classmethod
    def of(cls, batch: PackedBatch, policy: Policy, device: torch.device) -> "Given":
        """Return it for the rows of a batch; raises InputError where a policy compares rows that have no lists."""
        exits = policy.exit_at()
        exit_at = None if exits is None else to_device([np.asarray(exits, dtype=np.int64)], device)[0]
        if not policy.is_listwise:
            return cls(exit_at, None, 0)
        if batch.lists is None:
            raise InputError(f"{policy} compares the candidates of a query: use it with pf.rerank, or pf.Reranker")
        return cls(exit_at, to_device([batch.lists], device)[0], int(batch.lists.max(initial=-1)) + 1)

    def staying(self, logits: Tensor, state: ops.RowState, among: Among) -> Tensor:
        """Return which rows of a wave stay, [rows] int8, by what a layer's head says of them, [rows, classes]."""
        assert self.list_of is not None
        scores = scores_of(logits, among.label)
        return staying(scores, state.keep, self.list_of[state.row_ids], self.lists, among)


def scores_of(logits: Tensor, label: int = 0) -> Tensor:
    """Return what rows are compared by, [...] float32, of logits [..., classes]: the one output, or of several the
    log-odds of `label`."""
    if logits.shape[-1] == 1:
        return logits[..., 0]
    others = torch.cat([logits[..., :label], logits[..., label + 1 :]], dim=-1)
    return logits[..., label] - others.logsumexp(dim=-1)


def staying(scores: Tensor, keep: Tensor, list_of: Tensor, lists: int, among: Among) -> Tensor:
    """Return which rows stay after a layer, [rows] int8; the host waits for nothing.

    What is not finite is no score: it stays, and is told where the row ends.

    Args:
        scores: [rows] float32, by the layer's head.
        keep: [rows] int8, 0 for rows that have left: they stay away, and are not compared with.
        list_of: [rows] int64, which list each row belongs to.
        lists: there are so many.
    """
    bar = bars(scores, keep, list_of, lists, among.top_k)[list_of]
    return ((keep != 0) & ~(scores < bar - among.margin)).to(keep.dtype)


def bars(scores: Tensor, keep: Tensor, list_of: Tensor, lists: int, top_k: int) -> Tensor:
    """Return each list's `top_k`-th best score of rows that are kept, [lists] float32; -inf where it has fewer."""
    ranked = torch.where((keep != 0) & scores.isfinite(), scores, -torch.inf)
    order = ranked.argsort(descending=True, stable=True)
    order = order[list_of[order].argsort(stable=True)]  # list by list, the best first
    counts = list_of.new_zeros(lists).scatter_add_(0, list_of, torch.ones_like(list_of))
    place = counts.cumsum(0) - counts + top_k - 1
    return torch.where(counts >= top_k, ranked[order[place.clamp(max=len(scores) - 1)]], -torch.inf)
