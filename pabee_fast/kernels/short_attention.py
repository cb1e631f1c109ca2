"""Attention within short packed rows in one launch: whole neighbouring rows share a tile of queries and keys."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import MARKS, NUMBERS, attention_arguments
from .checks import check_on_device
from .checks_attention import check_short_attention
from .launch import Launch
from .launch_attention import FEW_QUERIES, MAX_SHORT_HEAD, is_hopper, short_attention_constants
from .prepared import UNKNOWN, Repeated, repeat


@triton.jit
def first_row_from(cu_seqlens_ptr, token, rows):
    """Return the first row that starts at `token` or after it; `rows` where there is none.

    cu_seqlens_ptr: [rows + 1] int32
    """
    row = tl.full([], 0, tl.int32)
    beyond = tl.full([], 0, tl.int32) + rows
    while row < beyond:
        middle = (row + beyond) // 2
        is_before = tl.load(cu_seqlens_ptr + middle) < token
        row = tl.where(is_before, middle + 1, row)
        beyond = tl.where(is_before, beyond, middle)
    return row


@triton.jit
def attend_tile(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    positions_ptr,
    query_bias_ptr,
    value_bias_ptr,
    begin,
    size,
    first,
    last,
    query_stride,
    key_stride,
    value_stride,
    scaling,
    window,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Return what every token of a tile attends to in its own row, [tokens, value] float32.

    query_ptr, key_ptr: [all tokens, HEAD_DIM], of one head
    value_ptr: [all tokens, VALUE_DIM], likewise
    key_mask_ptr, positions_ptr: [all tokens] or None
    query_bias_ptr, value_bias_ptr: [HEAD_DIM] and [VALUE_DIM], of that head, or None
    begin, size: the tile's first token, int64, and how many it has
    first, last: [tokens], where a token's row begins and ends in the tile
    """
    place = tl.arange(0, BLOCK_TOKENS)
    is_token = place < size
    token = begin + place
    head_offs = tl.arange(0, BLOCK_HEAD)
    value_offs = tl.arange(0, BLOCK_VALUE)
    # [tokens, head]
    head_mask = is_token[:, None] & (head_offs < HEAD_DIM)[None, :]
    query = tl.load(query_ptr + token[:, None] * query_stride + head_offs[None, :], mask=head_mask, other=0.0)
    if query_bias_ptr is not None:
        bias = tl.load(query_bias_ptr + head_offs, mask=head_offs < HEAD_DIM, other=0.0).to(tl.float32)
        query = (query.to(tl.float32) + bias[None, :]).to(query.dtype)
    key = tl.load(key_ptr + token[:, None] * key_stride + head_offs[None, :], mask=head_mask, other=0.0)
    # [tokens, value]
    value = tl.load(
        value_ptr + token[:, None] * value_stride + value_offs[None, :],
        mask=is_token[:, None] & (value_offs < VALUE_DIM)[None, :],
        other=0.0,
    )
    # [tokens]; a value that is not finite would reach other rows through a weight of 0, so that its token gives none.
    # Instead its score is NaN, and so are the sums of those who see it.
    flaw = tl.sum(value.to(tl.float32) * 0.0, axis=1)
    value = tl.where((flaw == 0.0)[:, None], value, 0.0)

    if IS_CAUSAL:
        last = tl.minimum(last, place + 1)
    if HAS_WINDOW and positions_ptr is None:
        first = tl.maximum(first, place - window + 1)
        last = tl.minimum(last, place + window)
    # [queries, keys]
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling + flaw[None, :]
    seen = (place[None, :] >= first[:, None]) & (place[None, :] < last[:, None])
    key_mask = is_token
    if key_mask_ptr is not None:
        key_mask = tl.load(key_mask_ptr + token, mask=is_token, other=0) != 0
    if HAS_WINDOW and positions_ptr is not None:
        # A hidden key is as if beyond any window.
        positions = tl.load(positions_ptr + token, mask=is_token, other=0)
        key_positions = tl.where(key_mask, positions, 2147483647)
        seen &= tl.abs(positions[:, None] - key_positions[None, :]) < window
    elif key_mask_ptr is not None:
        seen &= key_mask[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    # [queries]; who sees no key must not subtract -inf from -inf
    largest = tl.max(scores, axis=1)
    weights = tl.exp2(scores - tl.where(largest == float("-inf"), 0.0, largest)[:, None])
    total = tl.sum(weights, axis=1)
    weighted = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    weighted = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    if value_bias_ptr is not None:
        # Weights add up to 1, so that it may come last; but to 0 of a query that sees no key.
        bias = tl.load(value_bias_ptr + value_offs, mask=value_offs < VALUE_DIM, other=0.0).to(tl.float32)
        weighted += tl.where((total == 0.0)[:, None], 0.0, bias[None, :])
    return weighted


@triton.jit(do_not_specialize=[*NUMBERS, "tokens"], do_not_specialize_on_alignment=MARKS)
def short_attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    cu_seqlens_ptr,
    key_mask_ptr,
    positions_ptr,
    query_bias_ptr,
    value_bias_ptr,
    rows,
    window,
    scaling,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    tokens,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Attend from every token to the keys of its own row, for one head of the rows that start in SPAN tokens.

    query_ptr: [tokens, HEADS, HEAD_DIM]
    key_ptr: [tokens, HEADS / GROUP, HEAD_DIM]
    value_ptr: [tokens, HEADS / GROUP, VALUE_DIM]
    out_ptr: [tokens, HEADS, VALUE_DIM]
    cu_seqlens_ptr: [rows + 1] int32; no row is longer than BLOCK_TOKENS
    key_mask_ptr: [tokens] bool or None
    positions_ptr: [tokens] int32, or None where windows count places in the packed row
    query_bias_ptr: [HEADS, HEAD_DIM], added to queries; None
    value_bias_ptr: [HEADS / GROUP, VALUE_DIM], likewise
    scaling: times log2(e)
    *_stride: in STRIDE_UNIT elements, so that the compiler knows what divides them
    """
    # A program owns one head of the rows that start in its span, and takes as many of them at a time as fit a tile.
    head = tl.program_id(0) % HEADS
    span_offset = tl.program_id(0) // HEADS * SPAN
    span_end = tl.minimum(span_offset + SPAN, tokens)
    kv_head = (head // GROUP).to(tl.int64)
    query_stride = query_token_stride.to(tl.int64) * STRIDE_UNIT
    key_stride = key_token_stride.to(tl.int64) * STRIDE_UNIT
    value_stride = value_token_stride.to(tl.int64) * STRIDE_UNIT
    query_ptr += head.to(tl.int64) * (query_head_stride.to(tl.int64) * STRIDE_UNIT)
    key_ptr += kv_head * (key_head_stride.to(tl.int64) * STRIDE_UNIT)
    value_ptr += kv_head * (value_head_stride.to(tl.int64) * STRIDE_UNIT)
    if query_bias_ptr is not None:
        query_bias_ptr += head * HEAD_DIM
    if value_bias_ptr is not None:
        value_bias_ptr += head // GROUP * VALUE_DIM

    place = tl.arange(0, BLOCK_TOKENS)
    row = first_row_from(cu_seqlens_ptr, span_offset, rows)
    end = tl.load(cu_seqlens_ptr + row)
    while end < span_end:
        # 1. The tile's rows: the next one, and those after it while they fit.
        begin = end
        # [tokens]
        first = tl.zeros([BLOCK_TOKENS], dtype=tl.int32)
        last = tl.zeros([BLOCK_TOKENS], dtype=tl.int32)
        fits = end < span_end
        while fits:
            row += 1
            row_first, row_last = end - begin, tl.load(cu_seqlens_ptr + row) - begin
            is_own = (place >= row_first) & (place < row_last)
            first = tl.where(is_own, row_first, first)
            last = tl.where(is_own, row_last, last)
            end = begin + row_last
            after = tl.load(cu_seqlens_ptr + row + 1, mask=row < rows, other=2147483647)
            fits = (end < span_end) & (after - begin <= BLOCK_TOKENS)
        # 2. Their attention, one softmax for all.
        out = attend_tile(
            query_ptr, key_ptr, value_ptr, key_mask_ptr, positions_ptr, query_bias_ptr, value_bias_ptr,
            begin.to(tl.int64), end - begin, first, last, query_stride, key_stride, value_stride, scaling, window,
            HEAD_DIM, VALUE_DIM, IS_CAUSAL, HAS_WINDOW, BLOCK_TOKENS, BLOCK_HEAD, BLOCK_VALUE,
        )  # fmt: skip
        # [tokens, value]
        value_offs = tl.arange(0, BLOCK_VALUE)
        tl.store(
            out_ptr + ((begin.to(tl.int64) + place)[:, None] * HEADS + head) * VALUE_DIM + value_offs[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=(place < end - begin)[:, None] & (value_offs < VALUE_DIM)[None, :],
        )


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    scaling: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    positions: Tensor | None = None,
    query_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
) -> Tensor:
    """Do what `reference.short_attention` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. Products are summed in float32, and
    float32 ones are not rounded to TF32. A query that sees a value which is not finite gets NaN.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit, or a head is larger than MAX_SHORT_HEAD.
    """
    check_short_attention(
        query, key, value, cu_seqlens, longest=longest, window=window, key_mask=key_mask, positions=positions,
        query_bias=query_bias, value_bias=value_bias,
    )  # fmt: skip
    is_interpreted = not isinstance(short_attention_kernel, triton.JITFunction)
    check_on_device("query", query, is_interpreted)
    if is_interpreted and query.dtype == torch.bfloat16:
        raise ValueError("query is torch.bfloat16, which Triton's interpreter multiplies wrongly; use torch.float32")
    if max(query.shape[2], value.shape[2]) > MAX_SHORT_HEAD[query.dtype]:
        raise ValueError(
            f"query is {list(query.shape)} and value {list(value.shape)}; the kernel takes heads of up to "
            f"{MAX_SHORT_HEAD[query.dtype]} numbers of {query.dtype}, so call attention"
        )
    return short_attention_unchecked(
        query, key, value, cu_seqlens, longest=longest, scaling=scaling, is_causal=is_causal, window=window,
        key_mask=key_mask, positions=positions, query_bias=query_bias, value_bias=value_bias,
    )  # fmt: skip


def short_attention_unchecked(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, longest: int, **options: Any
) -> Tensor:
    """Do what `short_attention` does, for arguments that were checked where they were made."""
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    if out.numel():
        short_attention_launch(query, key, value, out, cu_seqlens, **options).run()
    return out


class JoinedAttention:
    """`short_attention` of queries, keys and values that lie side by side in one product, again and again; its
    arguments were checked where they were made."""

    def __init__(self, *, heads: int, head_dim: int, scaling: float) -> None:
        self._heads, self._head_dim, self._scaling = heads, head_dim, scaling
        self._known: dict[tuple[bool, bool, bool], tuple[Repeated, int, tuple[Any, ...]]] = {}

    def __call__(
        self,
        *,
        product: Tensor,
        cu_seqlens: Tensor,
        key_mask: Tensor | None = None,
        query_bias: Tensor | None = None,
        value_bias: Tensor | None = None,
    ) -> Tensor:
        """Return attention of each token, [tokens, heads * head_dim].

        Args:
            product: [tokens, 3 * heads * head_dim].
            cu_seqlens, key_mask, query_bias, value_bias: as `short_attention` takes them; both biases or none.
        """
        heads, tokens, rows = self._heads, product.shape[0], cu_seqlens.shape[0] - 1
        out = product.new_empty((tokens, heads * self._head_dim))
        if not tokens:
            return out
        query, target, width = product.data_ptr(), out.data_ptr(), out.shape[1] * out.itemsize
        mask, query_address, value_address = (
            0 if each is None else each.data_ptr() for each in (key_mask, query_bias, value_bias)
        )
        tensors = (
            query, query + width, query + 2 * width, target, cu_seqlens.data_ptr(), mask, 0, query_address,
            value_address,
        )  # fmt: skip
        # The numbers but for those of rows and tokens, and the tokens of a program, are as they were.
        kind = (_is_few(tokens, heads), key_mask is None, query_bias is None)
        repeated, span, numbers = self._known.get(kind, (UNKNOWN, 1, ()))
        aligned, grid = query | width | target | query_address | value_address, (-(-tokens // span) * heads, 1)
        if not repeated.again(product, aligned, tokens, grid, (*tensors, rows, *numbers, tokens)):
            parts = product.view(tokens, 3, heads, self._head_dim).unbind(1)
            launch = short_attention_launch(
                parts[0], parts[1], parts[2], out, cu_seqlens, scaling=self._scaling,
                key_mask=key_mask, query_bias=query_bias, value_bias=value_bias,
            )  # fmt: skip
            numbers = tuple(launch.arguments.values())[len(tensors) + 1 : -1]
            repeated = repeat(launch, (*launch.grid, 1), (*tensors, rows, *numbers, tokens))
            self._known[kind] = repeated, launch.constants.values["SPAN"], numbers
        return out


def short_attention_launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    cu_seqlens: Tensor,
    *,
    query_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    **options: Any,
) -> Launch:
    """Return the launch that `short_attention` runs on checked arguments to fill `out`, not empty."""
    options |= {"query_bias_ptr": query_bias, "value_bias_ptr": value_bias}
    arguments, heads = attention_arguments(query, key, value, out, cu_seqlens, **options)
    arguments["tokens"] = tokens = query.shape[0]
    hides = heads.has_window or heads.is_causal or arguments["key_mask_ptr"] is not None
    constants = short_attention_constants(heads, is_hopper(query.device) and not hides, _is_few(tokens, heads.heads))
    grid = (-(-tokens // constants.values["SPAN"]) * heads.heads,)
    return Launch(short_attention_kernel, grid, arguments, constants)


def _is_few(tokens: int, heads: int) -> bool:
    return tokens * heads < FEW_QUERIES
