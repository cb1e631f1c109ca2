"""Rows laid end to end without padding, and the way there from the padded layout of Hugging Face."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.models import family_of
from pabee_fast.runtime import ops

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
        where, is_token, back = ops.to_device((sources.astype(np.int64), real, np.flatnonzero(real)), device)
        is_visible = is_token if key_mask is None else is_token & key_mask[where]
        return cls(slice(ends[0], ends[-1]), where, is_token, is_visible, back)


@dataclass(frozen=True)
class PackedBatch:
    """The inputs of rows laid end to end: what a call brings, before it is cut into waves."""

    inputs: Mapping[str, Tensor]  # each [tokens, ...]: input_ids or inputs_embeds, position_ids, perhaps token_type_ids
    lengths: np.ndarray  # [rows] int64, on the host
    key_mask: Tensor | None = None  # [tokens] bool, see Layout
    positions: Tensor | None = None  # [tokens] int32, see Layout
    images: Tensor | None = None  # [rows, channels, height, width], and no inputs then

    @cached_property
    def starts(self) -> np.ndarray:
        """[rows] int64: a row's first token."""
        return np.concatenate([[0], np.cumsum(self.lengths)])[:-1]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same rows on `device`; towards CUDA asynchronously, from pinned memory."""
        inputs = {name: ops.move(values, device) for name, values in self.inputs.items()}
        rest = {name: getattr(self, name) for name in ("key_mask", "positions", "images")}
        moved: dict[str, Any] = {
            name: None if values is None else ops.move(values, device) for name, values in rest.items()
        }
        return replace(self, inputs=inputs, **moved)

    def select(self, rows: np.ndarray, device: torch.device) -> "PackedBatch":
        """The given rows, in the given order, on `device`."""
        lengths = self.lengths[rows]
        if self.images is not None:
            (chosen,) = ops.to_device([rows], self.images.device)
            return replace(self, lengths=lengths, images=ops.move(self.images[chosen], device))
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


def pack(model: PreTrainedModel, *, attention_mask: Tensor | None = None, **padded: Tensor | None) -> PackedBatch:
    """Packs padded inputs; positions are those of the padded layout, so that holes and left padding mean the same.

    Args:
        model: whose family says which tokens it keeps of a row, and how it numbers them where the caller does not.
        attention_mask: [rows, length], 0 where hidden; None means that every token counts, padding too.
        **padded: input_ids [rows, length] or inputs_embeds [rows, length, size]; token_type_ids, position_ids; or
            pixel_values [rows, channels, height, width] alone.

    Raises:
        InputError: no input, an input that the family does not have or of another shape, a row whose mask hides
            everything, or one that is longer than the model has positions for.
        UnsupportedError: a mask of another rank.
    """
    family: Any = family_of(model)
    given = {name: tensor for name, tensor in padded.items() if tensor is not None}
    if unknown := given.keys() - set(family.inputs):
        raise InputError(
            f"{', '.join(sorted(unknown))}: {type(model).__name__} takes {', '.join(family.inputs)}; leave it out"
        )
    if "pixel_values" in family.inputs:
        return _images(family, model, given.get("pixel_values"), attention_mask)
    if ("input_ids" in given) == ("inputs_embeds" in given):
        raise InputError("give exactly one of input_ids and inputs_embeds")
    main = given["input_ids" if "input_ids" in given else "inputs_embeds"]
    shape = _shape(given)
    if "position_ids" not in given:
        given["position_ids"] = family.position_ids(model, given.get("input_ids"), shape).to(main.device)
    given = {name: tensor.expand(shape) if tensor.ndim == 2 else tensor for name, tensor in given.items()}
    visible = _visible(attention_mask, main)
    kept = family.kept(model, given.get("input_ids"), visible)
    if shape[1] > family.max_length(model) and family.has_position_table(model):
        _check_positions(model, given["position_ids"], kept)
    if bool(kept.all()) and bool(visible.all()):
        lengths = np.full(shape[0], shape[1], dtype=np.int64)
        return PackedBatch({name: tensor.flatten(0, 1).contiguous() for name, tensor in given.items()}, lengths)
    where = kept.flatten().nonzero().flatten()
    lengths = kept.sum(dim=1).cpu().numpy()
    shown = visible.flatten()[where]
    key_mask = None if bool(shown.all()) else shown
    is_inside = kept.cumsum(dim=1) > 0
    has_holes = bool((kept[:, 1:] & ~kept[:, :-1] & is_inside[:, :-1]).any())
    positions = (where % shape[1]).int() if has_holes else None
    return PackedBatch({name: t.flatten(0, 1)[where] for name, t in given.items()}, lengths, key_mask, positions)


def _shape(given: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows and length of a call's inputs, the main one among them."""
    for name, dims in (("input_ids", 2), ("inputs_embeds", 3)):
        if name in given:
            found = list(given[name].shape)
            if len(found) != dims or 0 in found[1:]:
                wanted = "[rows, length]" if dims == 2 else "[rows, length, hidden_size]"
                raise InputError(f"{name} is {found}: give {wanted}, of at least one token")
            rows, length = found[:2]
    for name in ("token_type_ids", "position_ids"):
        if name in given and list(given[name].shape) not in ([rows, length], [1, length]):
            raise InputError(f"{name} is {list(given[name].shape)}: give [rows, length], here {[rows, length]}")
    return rows, length


def _check_positions(model: Any, position_ids: Tensor, kept: Tensor) -> None:
    """Raises InputError for a position that the model's table lacks; on CUDA the look-up would end the process."""
    places = model.config.max_position_embeddings
    beyond = (kept & (position_ids >= places)).any(dim=1).nonzero().flatten().tolist()
    if beyond:
        tokens = int(kept[beyond[0]].sum())
        raise InputError(
            f"row {beyond[0]} has {tokens} tokens and positions above {places - 1}, the last that the model has: "
            "truncate it (truncation=True, max_length=... for the tokenizer)"
        )


def _visible(attention_mask: Tensor | None, main: Tensor) -> Tensor:
    """[rows, length] bool of a mask, or of none."""
    shape = main.shape[:2]
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=main.device)
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
    return visible


def _images(family: Any, model: Any, pixel_values: Tensor | None, attention_mask: Tensor | None) -> PackedBatch:
    if pixel_values is None:
        raise InputError(f"pixel_values is missing: {type(model).__name__} classifies images")
    if attention_mask is not None:
        raise UnsupportedError("attention_mask: images have no padding to hide; leave it out")
    lengths = np.full(len(pixel_values), family.image_tokens(model, pixel_values), dtype=np.int64)
    return PackedBatch({}, lengths, images=pixel_values)
