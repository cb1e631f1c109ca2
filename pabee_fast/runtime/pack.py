"""Rows laid end to end without padding, and the way there from the padded layout of Hugging Face."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.models import family_of
from pabee_fast.runtime import ops
from pabee_fast.runtime.schedule import Order
from pabee_fast.transfer import move, to_device

PLACES = 2**20
"""Of the padded layout, where tokenized rows pass through it: one long row among many short ones makes it wide."""


@dataclass(frozen=True)
class PackedBatch:
    """The inputs of rows laid end to end: what a call brings, before it is cut into waves."""

    inputs: Mapping[str, Tensor]  # each [tokens, ...]: input_ids or inputs_embeds, position_ids, perhaps token_type_ids
    lengths: np.ndarray  # [rows] int64, on the host
    key_mask: Tensor | None = None  # [tokens] bool, see Layout
    positions: Tensor | None = None  # [tokens] int32, see Layout
    images: Tensor | None = None  # [rows, channels, height, width], and no inputs then
    lists: np.ndarray | None = None  # [rows] int64, on the host: which list a row belongs to, where rows are compared

    @cached_property
    def starts(self) -> np.ndarray:
        """[rows] int64: a row's first token."""
        return np.concatenate([[0], np.cumsum(self.lengths)])[:-1]

    @cached_property
    def longest_first(self) -> Order:
        """The rows by their lengths."""
        return Order.of(self.lengths)

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the same rows on `device`; towards CUDA asynchronously, from pinned memory."""
        tensors = (*self.inputs.values(), self.key_mask, self.positions, self.images)
        if all(tensor is None or tensor.device == device for tensor in tensors):
            return self  # with what is known of its rows
        inputs = {name: move(values, device) for name, values in self.inputs.items()}
        rest = {name: getattr(self, name) for name in ("key_mask", "positions", "images")}
        moved: dict[str, Any] = {
            name: None if values is None else move(values, device) for name, values in rest.items()
        }
        there = replace(self, inputs=inputs, **moved)
        # Known from now on: a run, for which a GPU waits, need not find them.
        vars(there).update(starts=self.starts, longest_first=self.longest_first)
        return there

    def select(self, rows: np.ndarray, device: torch.device) -> "PackedBatch":
        """Return the given rows, in the given order, on `device`."""
        return self.picked(rows, device)[0]

    def picked(self, rows: np.ndarray, device: torch.device) -> tuple["PackedBatch", Tensor, Tensor]:
        """Return what `select` does, and `cu_seqlens` and numbers of the rows on `device`."""
        lengths, lists = self.lengths[rows], None if self.lists is None else self.lists[rows]
        cu_seqlens = cumulative(lengths)
        if self.images is not None:
            ends, chosen = to_device([cu_seqlens, rows], self.images.device)
            images = move(self.images[chosen], device)
            batch = replace(self, lengths=lengths, lists=lists, images=images)
            return batch, move(ends, device), move(chosen, device)
        here = next(iter(self.inputs.values())).device
        size = {"rows": len(rows), "tokens": int(cu_seqlens[-1]), "longest": int(lengths.max(initial=0))}
        starts, ends, chosen = to_device((self.starts[rows].astype(np.int32), cu_seqlens, rows), here)

        def pick(values: Tensor) -> Tensor:
            return move(ops.gather(values, starts, ends, **size)[0], device)

        inputs = {name: pick(values) for name, values in self.inputs.items()}
        key_mask, positions = (None if mark is None else pick(mark) for mark in (self.key_mask, self.positions))
        batch = replace(self, inputs=inputs, lengths=lengths, lists=lists, key_mask=key_mask, positions=positions)
        return batch, move(ends, device), move(chosen, device)


def cumulative(lengths: np.ndarray) -> np.ndarray:
    """Return [rows + 1] int32: 0 and the running sums of `lengths`."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def pack(
    model: PreTrainedModel,
    use_cache: bool | None = None,
    /,
    *,
    attention_mask: Tensor | None = None,
    **padded: Tensor | None,
) -> PackedBatch:
    """Pack padded inputs; positions are those of the padded layout, so that holes and left padding mean the same.

    Args:
        model: whose family says which tokens it keeps of a row, and how it numbers them where the caller does not.
        use_cache: as the stock model's; without a cache some take rows whose positions start anew for several texts.
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
    has_texts = "position_ids" in given and attention_mask is None and family.separates_texts(model, use_cache)
    if "position_ids" not in given:
        given["position_ids"] = family.position_ids(model, given.get("input_ids"), shape).to(main.device)
    given = {name: tensor.expand(shape) if tensor.ndim == 2 else tensor for name, tensor in given.items()}
    visible = _visible(attention_mask, main)
    kept = family.kept(model, given.get("input_ids"), visible)
    if has_texts:
        kept = kept & _last_text(given["position_ids"], kept)
    marks = [kept, visible]
    if shape[1] > family.max_length(model) and family.has_position_table(model):
        marks.append(given["position_ids"] >= model.config.max_position_embeddings)
    # The host asks the device once, for all that it has to know.
    is_kept, is_visible, *is_beyond = torch.stack(marks).cpu().numpy()
    _check_rows(model, is_kept, is_visible, *is_beyond)
    if is_kept.all() and is_visible.all():
        lengths = np.full(shape[0], shape[1], dtype=np.int64)
        return PackedBatch({name: tensor.flatten(0, 1).contiguous() for name, tensor in given.items()}, lengths)
    row_of, column = np.nonzero(is_kept)
    is_shown = is_visible[row_of, column]
    has_holes = bool(((np.diff(column) != 1) & (np.diff(row_of) == 0)).any())
    where, shown, places = to_device((row_of * shape[1] + column, is_shown, column.astype(np.int32)), main.device)
    return PackedBatch(
        {name: tensor.flatten(0, 1)[where] for name, tensor in given.items()},
        is_kept.sum(axis=1),
        None if is_shown.all() else shown,
        places if has_holes else None,
    )


def pack_rows(model: PreTrainedModel, inputs: Mapping[str, np.ndarray], lengths: np.ndarray) -> PackedBatch:
    """Pack rows that lie end to end already, as a tokenizer gives them; they mean what rows padded on the right do.

    Args:
        model: as for `pack`.
        inputs: input_ids and perhaps token_type_ids, [tokens] int32 each.
        lengths: [rows] tokens of each row, none of them 0.

    Returns:
        The batch, whose inputs are int32 too: half of what travels to a device.

    Raises:
        InputError: a row that is longer than the model has positions for.
    """
    ids, pad = inputs["input_ids"], model.config.pad_token_id
    longest = int(lengths.argmax())
    start = int(lengths[:longest].sum())
    alone = ids[start : start + lengths[longest]].astype(np.int64)
    like_all = pack(model, input_ids=torch.from_numpy(alone)[None])
    if (pad is not None and bool((ids == pad).any())) or len(like_all.inputs["input_ids"]) < len(alone):
        return _through_padding(model, inputs, lengths)  # where families say what a padding token inside a row means
    place = np.arange(len(ids), dtype=np.int32)
    place -= np.repeat(cumulative(lengths)[:-1], lengths)
    positions = like_all.inputs["position_ids"].numpy().astype(np.int32)[place]
    packed = {name: torch.from_numpy(values) for name, values in {**inputs, "position_ids": positions}.items()}
    return PackedBatch(packed, lengths)


def _through_padding(model: PreTrainedModel, inputs: Mapping[str, np.ndarray], lengths: np.ndarray) -> PackedBatch:
    """`pack_rows` by way of the padded layout, some rows at a time."""
    parts, at_once = [], max(1, PLACES // int(lengths.max()))
    starts = np.cumsum(lengths) - lengths
    for first in range(0, len(lengths), at_once):
        rows = slice(first, first + at_once)
        column = np.arange(int(lengths[rows].max()))
        mask = column < lengths[rows, None]  # [rows, longest]
        where = np.minimum(starts[rows, None] + column, len(inputs["input_ids"]) - 1)
        fill = {"input_ids": model.config.pad_token_id}
        padded = {
            name: torch.from_numpy(np.where(mask, flat[where], fill.get(name, 0)).astype(np.int64))
            for name, flat in inputs.items()
        }
        parts.append(pack(model, attention_mask=torch.from_numpy(mask), **padded))
    # Rows that are padded on the right have neither masks nor positions to join.
    joined = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return PackedBatch(joined, np.concatenate([part.lengths for part in parts]))


def _shape(given: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return rows and length of a call's inputs, the main one among them."""
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


def _last_text(position_ids: Tensor, kept: Tensor) -> Tensor:
    """Return [rows, length] bool: the text of each row's last kept token, where another begins at a position that does
    not follow the one before it."""
    begins = position_ids.diff(dim=1) != 1
    texts = torch.nn.functional.pad(begins.cumsum(dim=1), (1, 0))
    return texts == torch.where(kept, texts, 0).amax(dim=1, keepdim=True)


def _check_rows(model: Any, is_kept: np.ndarray, is_visible: np.ndarray, is_beyond: np.ndarray | None = None) -> None:
    """Raise InputError for a row whose mask hides everything, or that has a position beyond the model's table, for
    which a look-up on CUDA would end the process. All are [rows, length] bool."""
    hidden = np.flatnonzero(~is_visible.any(axis=1))
    if len(hidden):
        raise InputError(f"attention_mask hides every token of row {hidden[0]}: drop such rows, or unmask one token")
    if is_beyond is not None and len(beyond := np.flatnonzero((is_kept & is_beyond).any(axis=1))):
        raise InputError(
            f"row {beyond[0]} has {is_kept[beyond[0]].sum()} tokens and positions above "
            f"{model.config.max_position_embeddings - 1}, the last that the model has: truncate it (truncation=True, "
            "max_length=... for the tokenizer)"
        )


def _visible(attention_mask: Tensor | None, main: Tensor) -> Tensor:
    """Return [rows, length] bool of a mask, or of none."""
    shape = main.shape[:2]
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=main.device)
    if attention_mask.shape != shape:
        raise UnsupportedError(
            f"attention_mask is {list(attention_mask.shape)}: early exit takes [rows, length], here {list(shape)}; "
            "for masks of three or four dimensions restore the model first (pf.restore)"
        )
    return attention_mask.to(main.device) != 0


def _images(family: Any, model: Any, pixel_values: Tensor | None, attention_mask: Tensor | None) -> PackedBatch:
    if pixel_values is None:
        raise InputError(f"pixel_values is missing: {type(model).__name__} classifies images")
    if attention_mask is not None:
        raise UnsupportedError("attention_mask: images have no padding to hide; leave it out")
    lengths = np.full(len(pixel_values), family.image_tokens(model, pixel_values), dtype=np.int64)
    return PackedBatch({}, lengths, images=pixel_values)
