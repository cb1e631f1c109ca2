"""One head, as a part of the exit step: a block of rows in, their logits out."""

import triton
import triton.language as tl

from .pool import token_tile


@triton.jit
def head_logits(
    features_ptr,
    weight_ptr,
    bias_ptr,
    begin,
    length,
    HIDDEN_SIZE: tl.constexpr,
    CLASSES: tl.constexpr,
    IS_FEW: tl.constexpr,
    POOLING: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Return one head's logits for a block of rows, [rows, classes] float32, 0 at padded classes.

    features_ptr: [tokens, HIDDEN_SIZE]
    weight_ptr: [CLASSES, HIDDEN_SIZE]
    bias_ptr: [CLASSES] or None
    begin, length: [rows]; a row of length 0 reads nothing
    """
    class_idx = tl.arange(0, BLOCK_CLASSES)
    scores = tl.zeros([length.shape[0], BLOCK_CLASSES], dtype=tl.float32)
    for hidden_offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
        hidden_offs = hidden_offset + tl.arange(0, BLOCK_HIDDEN)
        hidden_mask = hidden_offs < HIDDEN_SIZE
        feature = token_tile(features_ptr, begin, length, hidden_offs, HIDDEN_SIZE, POOLING)
        if IS_FEW:
            # Class by class, so that all of a row is on its way at once; blocks of a product would wait for each other.
            for class_at in tl.static_range(CLASSES):
                # [hidden]
                weight = tl.load(weight_ptr + class_at * HIDDEN_SIZE + hidden_offs, mask=hidden_mask, other=0.0)
                score = tl.sum(feature.to(tl.float32) * weight.to(tl.float32)[None, :], axis=1)
                scores += tl.where((class_idx == class_at)[None, :], score[:, None], 0.0)
        else:
            # [hidden, classes]
            weight = tl.load(
                weight_ptr + class_idx[None, :] * HIDDEN_SIZE + hidden_offs[:, None],
                mask=(class_idx < CLASSES)[None, :] & hidden_mask[:, None],
                other=0.0,
            )
            scores = tl.dot(feature, weight, scores, input_precision="ieee")
    if bias_ptr is not None:
        # [classes]
        bias = tl.load(bias_ptr + class_idx, mask=class_idx < CLASSES, other=0.0)
        scores += bias.to(tl.float32)[None, :]
    return scores
