"""One head, as a part of the exit step: a block of rows in, their logits out."""

import triton
import triton.language as tl

from .activation import activate
from .pool import pooled_tile


@triton.jit
def _add_product(product, x, weight_ptr, in_offs, out_offs, IN: tl.constexpr, OUT: tl.constexpr):
    """Return product + x weight^T over a block of inputs, [rows, out] float32.

    x: [rows, in], 0 past the last input
    weight_ptr: [OUT, IN]
    """
    # [in, out]
    weight = tl.load(
        weight_ptr + out_offs[None, :] * IN + in_offs[:, None],
        mask=(out_offs < OUT)[None, :] & (in_offs < IN)[:, None],
        other=0.0,
    )
    return tl.dot(x, weight, product, input_precision="ieee")


@triton.jit
def head_logits(
    features_ptr,
    weight_ptr,
    bias_ptr,
    pooler_weight_ptr,
    pooler_bias_ptr,
    key_mask_ptr,
    begin,
    length,
    visible,
    HIDDEN_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    CLASSES: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Return one head's logits for a block of rows, [rows, classes] float32, 0 at padded classes."""
    class_idx = tl.arange(0, BLOCK_CLASSES)
    scores = tl.zeros([length.shape[0], BLOCK_CLASSES], dtype=tl.float32)
    if pooler_weight_ptr is None:
        for hidden_offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
            hidden_offs = hidden_offset + tl.arange(0, BLOCK_HIDDEN)
            feature = pooled_tile(
                features_ptr, key_mask_ptr, begin, length, visible, hidden_offs, HIDDEN_SIZE, POOLING, BLOCK_TOKENS
            )
            scores = _add_product(scores, feature, weight_ptr, hidden_offs, class_idx, HIDDEN_SIZE, CLASSES)
    else:
        # The head takes each block of the pooler's outputs as it comes, so that no program holds all of them.
        for width_offset in range(0, WIDTH, BLOCK_WIDTH):
            width_offs = width_offset + tl.arange(0, BLOCK_WIDTH)
            pooled = tl.zeros([length.shape[0], BLOCK_WIDTH], dtype=tl.float32)
            for hidden_offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
                hidden_offs = hidden_offset + tl.arange(0, BLOCK_HIDDEN)
                feature = pooled_tile(
                    features_ptr, key_mask_ptr, begin, length, visible, hidden_offs, HIDDEN_SIZE, POOLING, BLOCK_TOKENS
                )
                pooled = _add_product(pooled, feature, pooler_weight_ptr, hidden_offs, width_offs, HIDDEN_SIZE, WIDTH)
            if pooler_bias_ptr is not None:
                bias = tl.load(pooler_bias_ptr + width_offs, mask=width_offs < WIDTH, other=0.0)
                pooled += bias.to(tl.float32)[None, :]
            # No activation moves 0, so padded outputs stay 0.
            pooled = activate(pooled, ACTIVATION).to(features_ptr.dtype.element_ty)
            scores = _add_product(scores, pooled, weight_ptr, width_offs, class_idx, WIDTH, CLASSES)
    if bias_ptr is not None:
        # [classes]
        bias = tl.load(bias_ptr + class_idx, mask=class_idx < CLASSES, other=0.0)
        scores += bias.to(tl.float32)[None, :]
    return scores
