"""The embedding of packed tokens in one launch: rows of two or three tables, their sum and its layer norm."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_on_device
from .checks_layer import check_embed_norm
from .launch import Launch, add_norm_constants
from .norm import normalise


@triton.jit
def table_rows(table_ptr, ids_ptr, token_idx, token_mask, rows, hidden_offs, HIDDEN_SIZE: tl.constexpr):
    """Return each token's row of a table, [tokens, hidden] float32 with zeros past HIDDEN_SIZE; NaN for an id that the
    table does not have.

    table_ptr: [rows, HIDDEN_SIZE]
    ids_ptr: [all tokens]
    """
    ids = tl.load(ids_ptr + token_idx, mask=token_mask, other=0).to(tl.int64)
    hidden_mask = hidden_offs < HIDDEN_SIZE
    has_row = (ids >= 0) & (ids < rows)
    found = tl.load(
        table_ptr + ids[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
        mask=has_row[:, None] & hidden_mask[None, :],
        other=0.0,
    ).to(tl.float32)
    return tl.where(has_row[:, None] | (hidden_offs >= HIDDEN_SIZE)[None, :], found, float("nan"))


@triton.jit(do_not_specialize=["tokens", "words", "positions", "types"])
def embed_norm_kernel(
    out_ptr,
    word_ids_ptr,
    position_ids_ptr,
    type_ids_ptr,
    words_ptr,
    positions_ptr,
    types_ptr,
    gain_ptr,
    shift_ptr,
    tokens,
    words,
    positions,
    types,
    eps,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Write the layer norm of each token's rows of the tables, added up.

    out_ptr: [tokens, HIDDEN_SIZE]
    word_ids_ptr, position_ids_ptr: [tokens]
    type_ids_ptr: [tokens] or None
    words_ptr: [words, HIDDEN_SIZE]
    positions_ptr: [positions, HIDDEN_SIZE]
    types_ptr: [types, HIDDEN_SIZE] or None
    gain_ptr, shift_ptr: [HIDDEN_SIZE]
    """
    # A program owns BLOCK_TOKENS tokens, a warp or several to each.
    token_idx = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    token_mask = token_idx < tokens
    hidden_offs = tl.arange(0, BLOCK_HIDDEN)
    # [tokens, hidden]
    x = table_rows(words_ptr, word_ids_ptr, token_idx, token_mask, words, hidden_offs, HIDDEN_SIZE)
    if types_ptr is not None:
        x += table_rows(types_ptr, type_ids_ptr, token_idx, token_mask, types, hidden_offs, HIDDEN_SIZE)
    x += table_rows(positions_ptr, position_ids_ptr, token_idx, token_mask, positions, hidden_offs, HIDDEN_SIZE)
    out = normalise(x, gain_ptr, shift_ptr, hidden_offs, eps, HIDDEN_SIZE)
    tl.store(
        out_ptr + token_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=token_mask[:, None] & (hidden_offs < HIDDEN_SIZE)[None, :],
    )


def embed_norm(
    word_ids: Tensor,
    position_ids: Tensor,
    type_ids: Tensor | None,
    words: Tensor,
    positions: Tensor,
    types: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Do what `reference.embed_norm` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. A token with an id that a table does not
    have becomes NaN.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit, or rows are wider than MAX_HIDDEN_SIZE.
    """
    tensors = (word_ids, position_ids, type_ids, words, positions, types, gain, shift)
    check_embed_norm(*tensors)
    check_on_device("words", words, not isinstance(embed_norm_kernel, triton.JITFunction))
    return embed_norm_unchecked(*tensors, eps=eps)


def embed_norm_unchecked(
    word_ids: Tensor, position_ids: Tensor, type_ids: Tensor | None, words: Tensor, *rest: Any, eps: float
) -> Tensor:
    """Do what `embed_norm` does, for arguments that were checked where they were made."""
    out = words.new_empty((word_ids.shape[0], words.shape[1]))
    if out.numel():
        embed_norm_launch(out, word_ids, position_ids, type_ids, words, *rest, eps=eps).run()
    return out


def embed_norm_launch(
    out: Tensor,
    word_ids: Tensor,
    position_ids: Tensor,
    type_ids: Tensor | None,
    words: Tensor,
    positions: Tensor,
    types: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    *,
    eps: float,
) -> Launch:
    """Return the launch that `embed_norm` runs on checked arguments to fill `out`, not empty."""
    tokens, hidden_size = out.shape
    constants = add_norm_constants(hidden_size)  # a token's numbers lie as there
    arguments: dict[str, Any] = dict(
        out_ptr=out,
        word_ids_ptr=word_ids,
        position_ids_ptr=position_ids,
        type_ids_ptr=type_ids,
        words_ptr=words,
        positions_ptr=positions,
        types_ptr=types,
        gain_ptr=gain,
        shift_ptr=shift,
        tokens=tokens,
        words=words.shape[0],
        positions=positions.shape[0],
        types=0 if types is None else types.shape[0],
        eps=float(eps),
    )
    return Launch(embed_norm_kernel, (-(-tokens // constants.values["BLOCK_TOKENS"]),), arguments, constants)
