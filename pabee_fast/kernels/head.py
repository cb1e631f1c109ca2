"""One head, as a part of the exit step: a block of rows in, their logits out."""

import triton
import triton.language as tl

from .pool import pooled_tile


@triton.jit
def head_logits(
    features_ptr,
    weight_ptr,
    bias_ptr,
    key_mask_ptr,
    begin,
    length,
    visible,
    HIDDEN_SIZE: tl.constexpr,
    CLASSES: tl.constexpr,
    POOLING: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Return one head's logits for a block of rows, [rows, classes] float32, 0 at padded classes."""
    class_idx = tl.arange(0, BLOCK_CLASSES)
    scores = tl.zeros([length.shape[0], BLOCK_CLASSES], dtype=tl.float32)
    for hidden_offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
        hidden_offs = hidden_offset + tl.arange(0, BLOCK_HIDDEN)
        feature = pooled_tile(
            features_ptr, key_mask_ptr, begin, length, visible, hidden_offs, HIDDEN_SIZE, POOLING, BLOCK_TOKENS
        )
        # [hidden, classes]
        weight = tl.load(
            weight_ptr + class_idx[None, :] * HIDDEN_SIZE + hidden_offs[:, None],
            mask=(class_idx < CLASSES)[None, :] & (hidden_offs < HIDDEN_SIZE)[:, None],
            other=0.0,
        )
        scores = tl.dot(feature, weight, scores, input_precision="ieee")
    if bias_ptr is not None:
        # [classes]
        bias = tl.load(bias_ptr + class_idx, mask=class_idx < CLASSES, other=0.0)
        scores += bias.to(tl.float32)[None, :]
    return scores
