"""What is said of a long text that was read in stretches: the mean of their logits, at the largest of their layers.

Stretches are laid end to end, text after text; `counts` [texts] int64 says how many each has.
"""

import torch
from torch import Tensor


def mean_of(values: Tensor, counts: Tensor) -> Tensor:
    """Return each text's mean, [..., texts, size], of values [..., stretches, size]."""
    of = texts_of(counts).to(values.device)
    sums = values.new_zeros(*values.shape[:-2], len(counts), values.shape[-1]).index_add_(-2, of, values)
    return sums / counts.to(values.device)[:, None]


def most_of(values: Tensor, counts: Tensor) -> Tensor:
    """Return each text's largest value, [texts], of values [stretches]."""
    return values.new_zeros(len(counts)).scatter_reduce_(0, texts_of(counts), values, "amax", include_self=False)


def sum_of(values: Tensor, counts: Tensor) -> Tensor:
    """Return each text's sum, [texts], of values [stretches]."""
    return values.new_zeros(len(counts)).index_add_(0, texts_of(counts), values)


def places_of(texts: Tensor, counts: Tensor) -> Tensor:
    """Return the places of the stretches of some texts, int64, text by text.

    Args:
        texts: int64 indices, or bool flags of all.
    """
    chosen = texts.nonzero().flatten() if texts.dtype == torch.bool else texts
    starts, many = (counts.cumsum(0) - counts)[chosen], counts[chosen]
    within = torch.arange(int(many.sum())) - (many.cumsum(0) - many).repeat_interleave(many)
    return starts.repeat_interleave(many) + within


def texts_of(counts: Tensor) -> Tensor:
    """Return the text of each stretch, [stretches] int64."""
    return torch.arange(len(counts)).repeat_interleave(counts)
