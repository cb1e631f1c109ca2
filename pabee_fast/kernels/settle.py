"""The rules by which rows settle, as a part of the exit step: a block's logits in, its streaks and memory brought up to
date. What each rule means stands in `reference.exit_step`."""

import triton
import triton.language as tl


@triton.jit
def _entropy(p):
    # p: [rows, classes] -> [rows], in nats; 0 ln 0 is 0
    return -tl.sum(tl.where(p > 0, p * tl.log(tl.where(p > 0, p, 1.0)), 0.0), axis=1)


@triton.jit
def _lowest_argmax(scores, class_idx, BLOCK_CLASSES: tl.constexpr):
    # argmax settles neither ties nor NaN alike everywhere, so the lowest index is asked for.
    best = tl.max(scores, axis=1)
    return tl.min(tl.where(scores == best[:, None], class_idx[None, :], BLOCK_CLASSES), axis=1)


@triton.jit
def settle(
    scores,
    valid,
    active,
    row_idx,
    streak,
    previous,
    streak_ptr,
    memory_ptr,
    threshold,
    CLASSES: tl.constexpr,
    WORDS: tl.constexpr,
    KIND: tl.constexpr,
    RULE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Bring streak and memory of a block of rows up to date, and return the streaks, [rows] int32.

    scores: [rows, classes] float32, -inf at padded classes
    valid, active: [rows]; rows whose logits are finite, and rows that are being computed
    row_idx: [rows] int64
    streak: [rows] int32, as it was
    previous: [rows] int32, the memory where a number is all that a row keeps
    streak_ptr: [all rows] int32
    memory_ptr: [all rows, WORDS] int32; None where WORDS is 0
    """
    class_idx = tl.arange(0, BLOCK_CLASSES)
    # [rows, classes]
    class_mask = active[:, None] & (class_idx < CLASSES)[None, :]
    if RULE == "confidence" or RULE == "entropy":
        weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        total = tl.sum(weights, axis=1)
        # The largest probability is exp(0) / total.
        is_sure = 1.0 / total > threshold if RULE == "confidence" else _entropy(weights / total[:, None]) < threshold
        streak = tl.where(is_sure, tl.maximum(streak, 0) + 1, 0)
    elif RULE == "vote":
        # [rows, classes]
        label = _lowest_argmax(scores, class_idx, BLOCK_CLASSES)
        is_vote = (class_idx[None, :] == label[:, None]) & valid[:, None]
        memory_offs = row_idx[:, None] * WORDS + class_idx[None, :]
        votes = tl.load(memory_ptr + memory_offs, mask=class_mask, other=0) + is_vote.to(tl.int32)
        tl.store(memory_ptr + memory_offs, votes, mask=class_mask)
        streak = tl.max(votes, axis=1)
    else:
        if RULE == "divergence":
            # [rows, classes]
            weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
            p = weights / tl.sum(weights, axis=1)[:, None]
            memory_offs = row_idx[:, None] * WORDS + class_idx[None, :]
            q = tl.load(memory_ptr + memory_offs, mask=class_mask, other=0).to(tl.float32, bitcast=True)
            same = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2 < threshold
            tl.store(memory_ptr + memory_offs, p.to(tl.int32, bitcast=True), mask=class_mask & valid[:, None])
        elif KIND == "label_set":
            # [rows, words]
            word_idx = tl.arange(0, BLOCK_CLASSES // 32)
            memory_offs = row_idx[:, None] * WORDS + word_idx[None, :]
            is_word = active[:, None] & (word_idx < WORDS)[None, :]
            bits = (scores > 0).to(tl.int32) << (class_idx % 32)[None, :]
            answer = tl.sum(tl.reshape(bits, [BLOCK_ROWS, BLOCK_CLASSES // 32, 32]), axis=2)
            words = tl.load(memory_ptr + memory_offs, mask=is_word, other=0)
            # Reduced as numbers: of truth values Triton would make the reduction again in the layout of `scores`, and
            # 3.6 mixes up rows as it moves a block of them there. Padded words are 0 in both.
            same = tl.max((answer ^ words).to(tl.uint32, bitcast=True), axis=1) == 0
            tl.store(memory_ptr + memory_offs, answer, mask=is_word & valid[:, None])
        else:
            # [rows]
            if KIND == "label":
                answer = _lowest_argmax(scores, class_idx, BLOCK_CLASSES)
                same = answer == previous
            else:
                value = tl.max(scores, axis=1)
                answer = value.to(tl.int32, bitcast=True)
                same = tl.abs(value - previous.to(tl.float32, bitcast=True)) < threshold
            tl.store(memory_ptr + row_idx, answer, mask=active & valid)
        # From -1 to 0 where there was no valid answer to compare with.
        streak = tl.where(same, streak + 1, 0)

    streak = tl.where(valid, streak, -1)
    tl.store(streak_ptr + row_idx, streak, mask=active)
    return streak
