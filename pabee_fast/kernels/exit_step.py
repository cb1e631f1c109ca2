"""The exit step in one launch: a row's token, head, rule and results of every row of a wave, for one layer; a mean of
tokens is pooled by a launch before it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import ExitHead, ExitRows, ExitRule, check_exit_step, check_on_device
from .head import head_logits
from .launch import Launch, exit_step_constants
from .pool import Pool
from .prepared import UNKNOWN, Constants, Repeated, repeat
from .settle import settle

# These change from layer to layer, and a specialisation on one would be compiled in the middle of a job.
_NUMBERS = ["rows", "layer", "last", "patience", "threshold"]
_STATE = [
    "keep_ptr",
    "streak_ptr",
    "memory_ptr",
    "row_ids_ptr",
    "logits_ptr",
    "exit_layers_ptr",
    "cu_seqlens_ptr",
    "exit_at_ptr",
]
_PARAMETERS = ["features_ptr", "weight_ptr", "bias_ptr", *_STATE, *_NUMBERS]


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_STATE)
def exit_step_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    keep_ptr,
    streak_ptr,
    memory_ptr,
    row_ids_ptr,
    logits_ptr,
    exit_layers_ptr,
    cu_seqlens_ptr,
    exit_at_ptr,
    rows,
    layer,
    last,
    patience,
    threshold,
    HIDDEN_SIZE: tl.constexpr,
    CLASSES: tl.constexpr,
    WORDS: tl.constexpr,
    KIND: tl.constexpr,
    RULE: tl.constexpr,
    POOLING: tl.constexpr,
    IS_FEW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Give the rows of a block one layer's head, bring their streaks up to date, and let those leave that may.

    features_ptr: [tokens, HIDDEN_SIZE]
    weight_ptr: [CLASSES, HIDDEN_SIZE]
    bias_ptr: [CLASSES] or None
    keep_ptr: [rows] int8
    streak_ptr: [rows] int32
    memory_ptr: [rows, WORDS] int32; None where WORDS is 0
    row_ids_ptr: [rows] int64
    logits_ptr: [results, CLASSES] float32
    exit_layers_ptr: [results] int64
    cu_seqlens_ptr: [rows + 1] int32; None where every row is one token, its pooled feature
    exit_at_ptr: [results] int64; None unless RULE is "given"
    """
    # A program owns BLOCK_ROWS rows with all their classes.
    row_idx = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    class_idx = tl.arange(0, BLOCK_CLASSES)
    # [rows]; loads that do not wait for one another, so that the head's time hides what the rule will need
    row_mask = row_idx < rows
    active = tl.load(keep_ptr + row_idx, mask=row_mask, other=0) != 0
    row_ids = tl.load(row_ids_ptr + row_idx, mask=row_mask, other=0)
    streak = tl.load(streak_ptr + row_idx, mask=row_mask, other=-1)
    previous = streak
    if (RULE == "agreement" or RULE == "given") and KIND != "label_set":
        previous = tl.load(memory_ptr + row_idx, mask=row_mask, other=0)
    begin = row_idx
    length = row_mask.to(tl.int32)
    if cu_seqlens_ptr is not None:
        begin = tl.load(cu_seqlens_ptr + row_idx, mask=row_mask, other=0).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + row_idx + 1, mask=row_mask, other=0) - begin).to(tl.int32)

    scores = head_logits(
        features_ptr, weight_ptr, bias_ptr, begin, length, HIDDEN_SIZE, CLASSES, IS_FEW, POOLING, BLOCK_HIDDEN,
        BLOCK_CLASSES,
    )  # fmt: skip

    # A padded class scores 0, or NaN where no class is finite; it must not look best. Infinities and NaN have the
    # largest exponent; numbers are reduced and not truth values, for the reason that `settle` gives.
    valid = tl.max(scores.to(tl.int32, bitcast=True) & 0x7F800000, axis=1) < 0x7F800000
    scores = tl.where((class_idx < CLASSES)[None, :], scores, float("-inf"))

    # [rows]; a block of numbers, since the interpreter takes a number's comparison for no truth value
    row_layer = tl.full([BLOCK_ROWS], 0, tl.int32) + layer
    leaves = active & (row_layer >= last)
    if RULE != "none":
        streak = settle(
            scores, valid, active, row_idx, streak, previous, streak_ptr, memory_ptr, threshold, CLASSES, WORDS, KIND,
            RULE, BLOCK_ROWS, BLOCK_CLASSES,
        )  # fmt: skip
        if exit_at_ptr is not None:
            leaves |= tl.load(exit_at_ptr + row_ids, mask=active, other=2147483647) <= row_layer
        else:
            leaves |= active & (streak >= patience)
    tl.store(keep_ptr + row_idx, 0, mask=leaves)
    tl.store(exit_layers_ptr + row_ids, row_layer.to(tl.int64), mask=leaves)
    # [rows, classes]
    tl.store(
        logits_ptr + row_ids[:, None] * CLASSES + class_idx[None, :],
        scores,
        mask=leaves[:, None] & (class_idx < CLASSES)[None, :],
    )


def exit_step(rows: ExitRows, head: ExitHead, rule: ExitRule) -> None:
    """Do what `reference.exit_step` says, with its arguments, without waiting for the device: in one launch, or two
    where heads read a mean.

    The tensors are on a CUDA device, or anywhere under Triton's interpreter. The float32 sums are what is stored as
    logits, whatever the dtype of the features.

    Raises:
        ValueError: a shape, dtype, device, layout or option does not fit, or there are more than MAX_CLASSES classes.
    """
    check_exit_step(rows, head, rule)
    is_interpreted = not isinstance(exit_step_kernel, triton.JITFunction)
    check_on_device("features", rows.features, is_interpreted)
    if is_interpreted and rows.features.dtype == torch.bfloat16:
        raise ValueError("features is torch.bfloat16, which Triton's interpreter multiplies wrongly; use torch.float32")
    ExitStep(head=head)(rows=rows, rule=rule)


class ExitStep:
    """`exit_step` of one head, again and again; its arguments were checked where they were made."""

    def __init__(self, *, head: ExitHead) -> None:
        self._head, self._pool = head, Pool()
        self._repeated: dict[tuple[str, str, str | None], Repeated] = {}

    def __call__(self, *, rows: ExitRows, rule: ExitRule) -> None:
        state, head = rows.state, self._head
        if not (count := state.keep.shape[0]):
            return
        if rows.pooling == "mean" and rows.cu_seqlens is not None:
            # Of a row's many tokens a program for each row and part of the hidden size reads faster than one with its
            # head.
            pooled = self._pool(
                features=rows.features, cu_seqlens=rows.cu_seqlens, pooling="mean", key_mask=rows.key_mask
            )
            rows = ExitRows(pooled, state, rows.logits, rows.exit_layers)
        constants = _constants(rows, head, rule)
        tensors, numbers = _arguments(rows, head, rule, constants)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        grid = (-(-count // constants.values["BLOCK_ROWS"]), 1)
        values = (*addresses, *numbers)
        kind = (rule.kind, rule.name, rows.pooling)
        if not self._repeated.get(kind, UNKNOWN).again(rows.features, addresses[0], max(numbers), grid, values):
            self._repeated[kind] = repeat(exit_step_launch(rows, head, rule), grid, values)


def exit_step_launch(rows: ExitRows, head: ExitHead, rule: ExitRule) -> Launch:
    """Return the launch that `exit_step` runs on checked arguments, means pooled already."""
    constants = _constants(rows, head, rule)
    tensors, numbers = _arguments(rows, head, rule, constants)
    arguments = dict(zip(_PARAMETERS, (*tensors, *numbers), strict=True))
    return Launch(exit_step_kernel, (-(-numbers[0] // constants.values["BLOCK_ROWS"]),), arguments, constants)


def _constants(rows: ExitRows, head: ExitHead, rule: ExitRule) -> Constants:
    classes, hidden_size = head.weight.shape
    return exit_step_constants(hidden_size, classes, rows.features.dtype, rule.kind, rule.name, rows.pooling)


def _arguments(
    rows: ExitRows, head: ExitHead, rule: ExitRule, constants: Constants
) -> tuple[tuple[Tensor | None, ...], tuple[int, int, int, int, float]]:
    """Return tensors and numbers in the order of the kernel's parameters."""
    state = rows.state
    memory = state.memory if constants.values["WORDS"] else None
    tensors = (
        rows.features, head.weight, head.bias, state.keep, state.streak, memory, state.row_ids, rows.logits,
        rows.exit_layers, rows.cu_seqlens, rule.exit_at,
    )  # fmt: skip
    return tensors, (state.keep.shape[0], rule.layer, rule.last, rule.patience, float(rule.threshold))
