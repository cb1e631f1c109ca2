"""The exit step in one launch: head, answer, streak, rule and results of every row of a wave, for one layer."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import FEATURE_DTYPES, answer_words, check_exit_step, check_on_device
from .launch import MAX_CLASSES, Launch, exit_step_blocks

# These change from layer to layer, and a specialisation on one would be compiled in the middle of a job.
_NUMBERS = ["rows", "layer", "patience", "threshold"]
_STATE = [
    "keep_ptr",
    "streak_ptr",
    "answer_ptr",
    "row_ids_ptr",
    "logits_ptr",
    "exit_layers_ptr",
    "starts_ptr",
    "exit_at_ptr",
]


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_STATE)
def exit_step_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    keep_ptr,
    streak_ptr,
    answer_ptr,
    row_ids_ptr,
    logits_ptr,
    exit_layers_ptr,
    starts_ptr,
    exit_at_ptr,
    rows,
    layer,
    patience,
    threshold,
    HIDDEN_SIZE: tl.constexpr,
    CLASSES: tl.constexpr,
    WORDS: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Give the rows of a block one layer's head, bring their streaks up to date, and let those leave that may.

    features_ptr: [lines, HIDDEN_SIZE]; a row reads line starts[row], or its own if starts_ptr is None
    weight_ptr: [CLASSES, HIDDEN_SIZE]
    bias_ptr: [CLASSES] or None
    keep_ptr: [rows] int8
    streak_ptr: [rows] int32
    answer_ptr: [rows, WORDS] int32
    row_ids_ptr: [rows] int64
    logits_ptr: [results, CLASSES] float32
    exit_layers_ptr: [results] int64
    starts_ptr: [rows] int32 or None
    exit_at_ptr: [results] int64; None if rows leave by their streak
    """
    # A program owns BLOCK_ROWS rows with all their classes.
    row_idx = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    class_idx = tl.arange(0, BLOCK_CLASSES)
    hidden_idx = tl.arange(0, BLOCK_HIDDEN)
    class_mask = class_idx < CLASSES
    # [rows]
    active = tl.load(keep_ptr + row_idx, mask=row_idx < rows, other=0) != 0
    line_idx = row_idx
    if starts_ptr is not None:
        line_idx = tl.load(starts_ptr + row_idx, mask=active, other=0).to(tl.int64)

    scores = tl.zeros([BLOCK_ROWS, BLOCK_CLASSES], dtype=tl.float32)
    for hidden_offset in range(0, HIDDEN_SIZE, BLOCK_HIDDEN):
        hidden_offs = hidden_offset + hidden_idx
        hidden_mask = hidden_offs < HIDDEN_SIZE
        # [rows, hidden]
        feature = tl.load(
            features_ptr + line_idx[:, None] * HIDDEN_SIZE + hidden_offs[None, :],
            mask=active[:, None] & hidden_mask[None, :],
            other=0.0,
        )
        # [hidden, classes]
        weight = tl.load(
            weight_ptr + class_idx[None, :] * HIDDEN_SIZE + hidden_offs[:, None],
            mask=class_mask[None, :] & hidden_mask[:, None],
            other=0.0,
        )
        scores = tl.dot(feature, weight, scores, input_precision="ieee")
    if bias_ptr is not None:
        # [classes]
        scores += tl.load(bias_ptr + class_idx, mask=class_mask, other=0.0).to(tl.float32)[None, :]

    # A padded class scores 0, or NaN where no class is finite; it must not look best.
    valid = tl.min((tl.abs(scores) < float("inf")).to(tl.int32), axis=1) != 0
    scores = tl.where(class_mask[None, :], scores, float("-inf"))

    # [rows]
    streak = tl.load(streak_ptr + row_idx, mask=active, other=-1)
    if KIND == "label_set":
        # [rows, words]
        word_idx = tl.arange(0, BLOCK_CLASSES // 32)
        answer_offs = row_idx[:, None] * WORDS + word_idx[None, :]
        answer_mask = active[:, None] & (word_idx < WORDS)[None, :]
        bits = (scores > 0).to(tl.int32) << (class_idx % 32)[None, :]
        answer = tl.sum(tl.reshape(bits, [BLOCK_ROWS, BLOCK_CLASSES // 32, 32]), axis=2)
        previous = tl.load(answer_ptr + answer_offs, mask=answer_mask, other=0)
        same = tl.max(((answer != previous) & answer_mask).to(tl.int32), axis=1) == 0
        tl.store(answer_ptr + answer_offs, answer, mask=answer_mask & valid[:, None])
    else:
        # [rows]
        best = tl.max(scores, axis=1)
        previous = tl.load(answer_ptr + row_idx, mask=active, other=0)
        if KIND == "label":
            # argmax settles neither ties nor NaN alike everywhere, so the lowest index is asked for.
            answer = tl.min(tl.where(scores == best[:, None], class_idx[None, :], BLOCK_CLASSES), axis=1)
            same = answer == previous
        else:
            answer = best.to(tl.int32, bitcast=True)
            same = tl.abs(best - previous.to(tl.float32, bitcast=True)) < threshold
        tl.store(answer_ptr + row_idx, answer, mask=active & valid)
    streak = tl.where(valid, tl.where(same & (streak >= 0), streak + 1, 0), -1)
    tl.store(streak_ptr + row_idx, streak, mask=active)

    # [rows]
    row_ids = tl.load(row_ids_ptr + row_idx, mask=active, other=0)
    if exit_at_ptr is None:
        leaves = active & (streak >= patience)
    else:
        leaves = active & (tl.load(exit_at_ptr + row_ids, mask=active, other=0) <= layer)
    tl.store(keep_ptr + row_idx, 0, mask=leaves)
    tl.store(exit_layers_ptr + row_ids, layer, mask=leaves)
    # [rows, classes]
    tl.store(
        logits_ptr + row_ids[:, None] * CLASSES + class_idx[None, :],
        scores,
        mask=leaves[:, None] & class_mask[None, :],
    )


def exit_step(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    streak: Tensor,
    answer: Tensor,
    row_ids: Tensor,
    logits: Tensor,
    exit_layers: Tensor,
    *,
    starts: Tensor | None,
    layer: int,
    kind: str,
    rule: str,
    patience: int = 0,
    threshold: float = 0.0,
    exit_at: Tensor | None = None,
) -> None:
    """Do what `reference.exit_step` says, with its arguments, in one launch and without waiting for the device.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. The float32 sums are what is stored as
    logits, whatever the dtype of `features`.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit, or there are more than MAX_CLASSES classes.
    """
    check_exit_step(
        features, weight, bias, keep, streak, answer, row_ids, logits, exit_layers,
        starts=starts, layer=layer, kind=kind, rule=rule, patience=patience, threshold=threshold, exit_at=exit_at,
    )  # fmt: skip
    is_interpreted = not isinstance(exit_step_kernel, triton.JITFunction)
    check_on_device("features", features, is_interpreted)
    if is_interpreted and features.dtype == torch.bfloat16:
        raise ValueError("features is torch.bfloat16, which Triton's interpreter multiplies wrongly; use torch.float32")
    launch = exit_step_launch(
        features, weight, bias, keep, streak, answer, row_ids, logits, exit_layers,
        starts=starts, layer=layer, kind=kind, rule=rule, patience=patience, threshold=threshold, exit_at=exit_at,
    )  # fmt: skip
    if len(keep):
        launch.run()


def exit_step_launch(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    streak: Tensor,
    answer: Tensor,
    row_ids: Tensor,
    logits: Tensor,
    exit_layers: Tensor,
    *,
    starts: Tensor | None,
    layer: int,
    kind: str,
    rule: str,
    patience: int,
    threshold: float,
    exit_at: Tensor | None,
) -> Launch:
    """Return the launch that `exit_step` runs on checked arguments."""
    rows, (classes, hidden_size) = keep.shape[0], weight.shape
    blocks, options = exit_step_blocks(hidden_size, classes, features.dtype)
    if kind == "label_set":
        blocks["BLOCK_CLASSES"] = max(blocks["BLOCK_CLASSES"], 32)
    arguments: dict[str, Any] = dict(
        features_ptr=features,
        weight_ptr=weight,
        bias_ptr=bias,
        keep_ptr=keep,
        streak_ptr=streak,
        answer_ptr=answer,
        row_ids_ptr=row_ids,
        logits_ptr=logits,
        exit_layers_ptr=exit_layers,
        starts_ptr=starts,
        exit_at_ptr=exit_at,
        rows=rows,
        layer=layer,
        # No streak is below -1, so that every row has reached this patience: one kernel for two rules.
        patience=-1 if rule == "all" else patience,
        threshold=float(threshold),
        HIDDEN_SIZE=hidden_size,
        CLASSES=classes,
        WORDS=answer_words(kind, classes),
        KIND=kind,
        **blocks,
    )
    grid = (triton.cdiv(rows, blocks["BLOCK_ROWS"]),)
    return Launch(exit_step_kernel, grid, arguments, {**options, "enable_fp_fusion": True})


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Yield, by name, launches that stand for what `exit_step` makes Triton compile at BERT-base's hidden size.

    Their tensors have no storage: a launch says what would be compiled, and cannot run. Rule "all" is "streak" to the
    kernel, and the layout touches nothing but one load.
    """
    few = {"label": 3, "value": 1, "label_set": 33}
    for dtype, (kind, classes), rule in itertools.product(FEATURE_DTYPES, few.items(), ("streak", "given")):
        yield _specialisation(dtype, kind, classes, "pooled", rule)
    yield _specialisation(torch.bfloat16, "label", few["label"], "packed", "streak")
    # As many classes as a program holds: the most registers.
    yield _specialisation(torch.float32, "label", MAX_CLASSES, "pooled", "streak")
    yield _specialisation(torch.bfloat16, "label_set", MAX_CLASSES, "pooled", "streak")


def _specialisation(dtype: torch.dtype, kind: str, classes: int, layout: str, rule: str) -> tuple[str, Launch]:
    hidden_size, words = 768, answer_words(kind, classes)
    with torch.device("meta"):
        per_row = torch.empty(1, dtype=torch.int32)
        per_result = torch.empty(1, dtype=torch.int64)
        launch = exit_step_launch(
            torch.empty(1, hidden_size, dtype=dtype),
            torch.empty(classes, hidden_size, dtype=dtype),
            torch.empty(classes, dtype=dtype),
            torch.empty(1, dtype=torch.int8),
            per_row,
            torch.empty(1, words, dtype=torch.int32),
            per_result,
            torch.empty(1, classes),
            per_result,
            starts=per_row if layout == "packed" else None,
            layer=1,
            kind=kind,
            rule=rule,
            patience=1,
            threshold=0.0,
            exit_at=per_result if rule == "given" else None,
        )
    return f"exit_step-{str(dtype).removeprefix('torch.')}-{kind}-{classes}-{layout}-{rule}", launch
