"""Rows laid end to end without padding, and the way there from the padded layout of Hugging Face."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.runtime import ops


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed batch lie; all that attention needs to know of it.

    `key_mask` [tokens] bool is there only where a row keeps its first token although its mask hides it, as left
    padding does: that token asks and answers, but nobody attends to it. `positions` [tokens] int32 are there only where
    a mask hid tokens between others: where in the padded layout a token stood, since sliding windows measure by that.
    """

    cu_seqlens: Tensor  # [rows + 1] int32
    max_seqlen: int
    key_mask: Tensor | None = None
    positions: Tensor | None = None


@dataclass(frozen=True)
class PackedBatch:
    """The inputs of rows laid end to end: what a call brings, before it is cut into waves."""

    inputs: Mapping[str, Tensor]  # each [tokens, ...]: input_ids or inputs_embeds, position_ids, perhaps token_type_ids
    lengths: np.ndarray  # [rows] int64, on the host
    key_mask: Tensor | None = None  # [tokens] bool, see Layout
    positions: Tensor | None = None  # [tokens] int32, see Layout

    @cached_property
    def starts(self) -> np.ndarray:
        """[rows] int64: a row's first token."""
        return np.concatenate([[0], np.cumsum(self.lengths)])[:-1]

    def select(self, rows: np.ndarray, device: torch.device) -> "PackedBatch":
        """The given rows, in the given order, on `device`."""
        lengths = self.lengths[rows]
        cu_seqlens = cumulative(lengths)
        here = next(iter(self.inputs.values())).device
        size = {"rows": len(rows), "tokens": int(cu_seqlens[-1]), "longest": int(lengths.max(initial=0))}
        starts, ends = ops.to_device((self.starts[rows].astype(np.int32), cu_seqlens), here)

        def pick(values: Tensor) -> Tensor:
            return ops.move(ops.gather(values, starts, ends, **size)[0], device)

        inputs = {name: pick(values) for name, values in self.inputs.items()}
        key_mask, positions = (None if mark is None else pick(mark) for mark in (self.key_mask, self.positions))
        return replace(self, inputs=inputs, lengths=lengths, key_mask=key_mask, positions=positions)


def cumulative(lengths: np.ndarray) -> np.ndarray:
    """[rows + 1] int32: 0 and the running sums of `lengths`."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def pack(
    number_positions: Callable[[Tensor | None, tuple[int, int]], Tensor],
    *,
    attention_mask: Tensor | None = None,
    **padded: Tensor | None,
) -> PackedBatch:
    """Packs padded inputs; positions are those of the padded layout, so that holes and left padding mean the same.

    Args:
        number_positions: numbers the padded layout as the model does; called where the caller gives no positions.
        attention_mask: [rows, length], 0 where hidden; None means that every token counts, padding too.
        **padded: input_ids [rows, length] or inputs_embeds [rows, length, size]; token_type_ids, position_ids.

    Raises:
        InputError: no input, or a row whose mask hides everything.
        UnsupportedError: a mask of another rank.
    """
    given = {name: tensor for name, tensor in padded.items() if tensor is not None}
    if ("input_ids" in given) == ("inputs_embeds" in given):
        raise InputError("give exactly one of input_ids and inputs_embeds")
    main = given["input_ids" if "input_ids" in given else "inputs_embeds"]
    shape = (main.shape[0], main.shape[1])
    if "position_ids" not in given:
        given["position_ids"] = number_positions(given.get("input_ids"), shape)
    given = {name: tensor.expand(shape) if tensor.ndim == 2 else tensor for name, tensor in given.items()}
    if attention_mask is None:
        lengths = np.full(shape[0], shape[1], dtype=np.int64)
        return PackedBatch({name: tensor.flatten(0, 1) for name, tensor in given.items()}, lengths)
    if attention_mask.shape != shape:
        raise UnsupportedError(
            f"attention_mask is {list(attention_mask.shape)}: early exit takes [rows, length], here {list(shape)}; "
            "for masks of three or four dimensions restore the model first (pf.restore)"
        )
    visible = attention_mask.to(main.device) != 0
    hidden_rows = (~visible.any(dim=1)).nonzero().flatten().tolist()
    if hidden_rows:
        raise InputError(
            f"attention_mask hides every token of row {hidden_rows[0]}: drop such rows, or unmask one token"
        )
    kept = visible.clone()
    kept[:, 0] = True  # the heads read it, hidden or not, as the stock model does
    where = kept.flatten().nonzero().flatten()
    lengths = kept.sum(dim=1).cpu().numpy()
    key_mask = None if bool(visible[:, 0].all()) else visible.flatten()[where]
    has_holes = bool((kept[:, 1:] & ~kept[:, :-1]).any())
    positions = (where % shape[1]).int() if has_holes else None
    return PackedBatch({name: t.flatten(0, 1)[where] for name, t in given.items()}, lengths, key_mask, positions)
