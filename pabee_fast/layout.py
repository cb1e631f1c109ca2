"""Where the rows of a packed batch lie; it knows numbers and tensors, and no model."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pabee_fast.transfer import to_device

LEAST_FILLED = 0.8
"""Neighbouring rows are padded together while the shortest fills so much of the longest. An estimate: attention is a
third of a layer's products at most, so a fifth of padding in it costs 5 %."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed batch lie; all that attention needs to know of it.

    `key_mask` [tokens] bool is there only where a row keeps a token although its mask hides it, as the first one where
    padding stands on the left: that token asks and answers, but nobody attends to it. `positions` [tokens] int32 are
    there only where a mask hid tokens between others: where in the padded layout a token stood, since sliding windows
    measure by that.
    """

    cu_seqlens: Tensor  # [rows + 1] int32
    max_seqlen: int
    key_mask: Tensor | None = None
    positions: Tensor | None = None
    attention: str | None = None  # one of choice.ATTENTIONS that was asked for
    asked: list[Any] = field(default_factory=list, kw_only=True)
    """The attention modules that have asked for it since it was last cleared."""

    @cached_property
    def padded_rows(self) -> "list[PaddedRows]":
        """The rows as padded sub-batches, for attention that needs them so. Reads the lengths from the device."""
        ends = self.cu_seqlens.tolist()
        lengths, groups, first = np.diff(ends), [], 0
        while first < len(lengths):
            last = first + 1
            short = long = lengths[first]
            while last < len(lengths):
                short, long = min(short, lengths[last]), max(long, lengths[last])
                if short < LEAST_FILLED * long:
                    break
                last += 1
            groups.append(PaddedRows.of(ends[first : last + 1], self.cu_seqlens.device, self.key_mask))
            first = last
        return groups


@dataclass(frozen=True)
class PaddedRows:
    """Neighbouring rows of a packed batch as a padded one, on the right."""

    tokens: slice  # of the packed batch: all of these rows
    where: Tensor  # [rows, length] int64: a place's token in the packed batch; padding repeats the row's last one
    is_token: Tensor  # [rows, length] bool: places that are not padding
    is_visible: Tensor  # [rows, length] bool: of these, the ones that others attend to
    back: Tensor  # [tokens] int64: a token's place among all, rows laid end to end
    memo: dict[str, Tensor] = field(default_factory=dict)
    """For what a family computes once for all layers."""

    @classmethod
    def of(cls, ends: list[int], device: torch.device, key_mask: Tensor | None) -> "PaddedRows":
        """From the rows' boundaries in the packed batch, [rows + 1] numbers."""
        starts, lengths = np.array(ends[:-1]), np.diff(ends)
        places = np.arange(lengths.max())
        sources = starts[:, None] + np.minimum(places, lengths[:, None] - 1)
        real = places < lengths[:, None]
        # Found on the host: where tokens stand is known there, and a mask as an index would wait for the device.
        where, is_token, back = to_device((sources.astype(np.int64), real, np.flatnonzero(real)), device)
        is_visible = is_token if key_mask is None else is_token & key_mask[where]
        return cls(slice(ends[0], ends[-1]), where, is_token, is_visible, back)
