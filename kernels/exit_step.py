"""The exit step in one launch: pooled token, head, rule and results of every row of a wave, for one layer."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import (
    FEATURE_DTYPES,
    KINDS,
    POOLINGS,
    RULES,
    Pooler,
    RowState,
    check_exit_step,
    check_on_device,
    memory_words,
)
from .head import head_logits
from .launch import MAX_CLASSES, Launch, exit_step_blocks
from .pool import count_visible
from .settle import settle

# These change from layer to layer, and a specialisation on one would be compiled in the middle of a job.
_NUMBERS = ["rows", "layer", "last", "depth", "patience", "threshold"]
_RULES_OF_ANY_KIND = ("agreement", "given", "none")
_HEAVY_RULES = [("label", "agreement"), ("label", "divergence"), ("label_set", "agreement")]
_STATE = [
    "keep_ptr",
    "streak_ptr",
    "memory_ptr",
    "row_ids_ptr",
    "logits_ptr",
    "exit_layers_ptr",
    "cu_seqlens_ptr",
    "key_mask_ptr",
    "layers_ptr",
    "patience_ptr",
    "exit_at_ptr",
]


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_STATE)
def exit_step_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    pooler_weight_ptr,
    pooler_bias_ptr,
    keep_ptr,
    streak_ptr,
    memory_ptr,
    row_ids_ptr,
    logits_ptr,
    exit_layers_ptr,
    cu_seqlens_ptr,
    key_mask_ptr,
    layers_ptr,
    patience_ptr,
    exit_at_ptr,
    rows,
    layer,
    last,
    depth,
    patience,
    threshold,
    HIDDEN_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    CLASSES: tl.constexpr,
    WORDS: tl.constexpr,
    KIND: tl.constexpr,
    RULE: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Give the rows of a block one layer's head, bring their streaks up to date, and let those leave that may.

    features_ptr: [tokens, HIDDEN_SIZE]
    weight_ptr: [CLASSES, WIDTH], or [depth, CLASSES, WIDTH] with layers_ptr
    bias_ptr: [CLASSES], or [depth, CLASSES] with layers_ptr; None
    pooler_weight_ptr: [WIDTH, HIDDEN_SIZE]; None where WIDTH is HIDDEN_SIZE and nothing lies between
    pooler_bias_ptr: [WIDTH] or None
    keep_ptr: [rows] int8
    streak_ptr: [rows] int32
    memory_ptr: [rows, WORDS] int32; None where WORDS is 0
    row_ids_ptr: [rows] int64
    logits_ptr: [results, CLASSES] float32
    exit_layers_ptr: [results] int64
    cu_seqlens_ptr: [rows + 1] int32; None where every row is one token, its pooled feature
    key_mask_ptr: [tokens] bool or None
    layers_ptr: [rows] int32; None where all rows have been given `layer` layers
    patience_ptr: [depth] int32; None where it is the same at all layers
    exit_at_ptr: [results] int64; None unless RULE is "given"
    """
    # A program owns BLOCK_ROWS rows with all their classes.
    row_idx = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    class_idx = tl.arange(0, BLOCK_CLASSES)
    # [rows]
    active = tl.load(keep_ptr + row_idx, mask=row_idx < rows, other=0) != 0
    begin = row_idx
    length = active.to(tl.int32)
    if cu_seqlens_ptr is not None:
        begin = tl.load(cu_seqlens_ptr + row_idx, mask=active, other=0).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + row_idx + 1, mask=active, other=0) - begin).to(tl.int32)
    visible = length
    if POOLING == "mean":
        visible = count_visible(key_mask_ptr, begin, length, BLOCK_TOKENS)

    if layers_ptr is None:
        row_layer = tl.full([BLOCK_ROWS], 0, tl.int32) + layer
        scores = head_logits(
            features_ptr, weight_ptr, bias_ptr, pooler_weight_ptr, pooler_bias_ptr, key_mask_ptr, begin, length,
            visible, HIDDEN_SIZE, WIDTH, CLASSES, POOLING, ACTIVATION, BLOCK_TOKENS, BLOCK_HIDDEN, BLOCK_WIDTH,
            BLOCK_CLASSES,
        )  # fmt: skip
    else:
        # Every layer between the block's first and last is asked, so rows of like depth should be neighbours. A row
        # whose layer is none of the `depth` keeps NaN, which settles nothing.
        row_layer = tl.load(layers_ptr + row_idx, mask=active, other=0)
        scores = tl.full([BLOCK_ROWS, BLOCK_CLASSES], float("nan"), tl.float32)
        head = tl.maximum(tl.min(tl.where(active, row_layer, depth)), 1).to(tl.int64)
        final = tl.minimum(tl.max(row_layer), depth)
        while head <= final:
            own_bias_ptr = bias_ptr
            if bias_ptr is not None:
                own_bias_ptr = bias_ptr + (head - 1) * CLASSES
            asked = head_logits(
                features_ptr, weight_ptr + (head - 1) * CLASSES * WIDTH, own_bias_ptr, pooler_weight_ptr,
                pooler_bias_ptr, key_mask_ptr, begin, length, visible, HIDDEN_SIZE, WIDTH, CLASSES, POOLING,
                ACTIVATION, BLOCK_TOKENS, BLOCK_HIDDEN, BLOCK_WIDTH, BLOCK_CLASSES,
            )  # fmt: skip
            scores = tl.where((row_layer == head)[:, None], asked, scores)
            head += 1

    # A padded class scores 0, or NaN where no class is finite; it must not look best. Infinities and NaN have the
    # largest exponent; numbers are reduced and not truth values, for the reason that `settle` gives.
    valid = tl.max(scores.to(tl.int32, bitcast=True) & 0x7F800000, axis=1) < 0x7F800000
    scores = tl.where((class_idx < CLASSES)[None, :], scores, float("-inf"))

    # [rows]
    leaves = active & (row_layer >= last)
    row_ids = tl.load(row_ids_ptr + row_idx, mask=active, other=0)
    if RULE != "none":
        streak = settle(
            scores, valid, active, row_idx, streak_ptr, memory_ptr, threshold, CLASSES, WORDS, KIND, RULE, BLOCK_ROWS,
            BLOCK_CLASSES,
        )  # fmt: skip
        if exit_at_ptr is not None:
            leaves |= tl.load(exit_at_ptr + row_ids, mask=active, other=2147483647) <= row_layer
        elif patience_ptr is not None:
            is_known = active & (row_layer >= 1) & (row_layer <= depth)
            leaves |= is_known & (streak >= tl.load(patience_ptr + row_layer - 1, mask=is_known, other=0))
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


def exit_step(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: RowState,
    logits: Tensor,
    exit_layers: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    pooling: str | None = None,
    key_mask: Tensor | None = None,
    pooler: Pooler | None = None,
    layer: int | Tensor,
    last: int,
    kind: str,
    rule: str,
    patience: int | Tensor = 0,
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
        features, weight, bias, state, logits, exit_layers, cu_seqlens=cu_seqlens, pooling=pooling, key_mask=key_mask,
        pooler=pooler, layer=layer, last=last, kind=kind, rule=rule, patience=patience, threshold=threshold,
        exit_at=exit_at,
    )  # fmt: skip
    is_interpreted = not isinstance(exit_step_kernel, triton.JITFunction)
    check_on_device("features", features, is_interpreted)
    if is_interpreted and features.dtype == torch.bfloat16:
        raise ValueError("features is torch.bfloat16, which Triton's interpreter multiplies wrongly; use torch.float32")
    launch = exit_step_launch(
        features, weight, bias, state, logits, exit_layers, cu_seqlens=cu_seqlens, pooling=pooling, key_mask=key_mask,
        pooler=pooler, layer=layer, last=last, kind=kind, rule=rule, patience=patience, threshold=threshold,
        exit_at=exit_at,
    )  # fmt: skip
    if len(state.keep):
        launch.run()


def exit_step_launch(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: RowState,
    logits: Tensor,
    exit_layers: Tensor,
    *,
    cu_seqlens: Tensor | None,
    pooling: str | None,
    key_mask: Tensor | None,
    pooler: Pooler | None,
    layer: int | Tensor,
    last: int,
    kind: str,
    rule: str,
    patience: int | Tensor,
    threshold: float,
    exit_at: Tensor | None,
) -> Launch:
    """Return the launch that `exit_step` runs on checked arguments."""
    (classes, width), words = weight.shape[-2:], memory_words(kind, rule, weight.shape[-2])
    by_layer = isinstance(layer, Tensor)
    blocks, options = exit_step_blocks(
        features.shape[1], classes, features.dtype, kind=kind, rule=rule, pooling=pooling
    )
    arguments: dict[str, Any] = dict(
        features_ptr=features,
        weight_ptr=weight,
        bias_ptr=bias,
        pooler_weight_ptr=None if pooler is None else pooler.weight,
        pooler_bias_ptr=None if pooler is None else pooler.bias,
        keep_ptr=state.keep,
        streak_ptr=state.streak,
        memory_ptr=state.memory if words else None,
        row_ids_ptr=state.row_ids,
        logits_ptr=logits,
        exit_layers_ptr=exit_layers,
        cu_seqlens_ptr=cu_seqlens,
        key_mask_ptr=key_mask,
        layers_ptr=layer if by_layer else None,
        patience_ptr=patience if isinstance(patience, Tensor) else None,
        exit_at_ptr=exit_at,
        rows=state.keep.shape[0],
        layer=0 if by_layer else layer,
        last=last,
        depth=weight.shape[0] if by_layer else 0,
        patience=0 if isinstance(patience, Tensor) else patience,
        threshold=float(threshold),
        HIDDEN_SIZE=features.shape[1],
        WIDTH=width,
        CLASSES=classes,
        WORDS=words,
        KIND=kind,
        RULE=rule,
        # A pooled feature is a row of one token.
        POOLING=pooling or "first",
        ACTIVATION=None if pooler is None else pooler.activation,
        **blocks,
    )
    grid = (triton.cdiv(state.keep.shape[0], blocks["BLOCK_ROWS"]),)
    return Launch(exit_step_kernel, grid, arguments, {**options, "enable_fp_fusion": True})


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Yield, by name, launches that stand for what `exit_step` makes Triton compile at BERT-base's hidden size.

    Their tensors have no storage: a launch says what would be compiled, and cannot run. A step is a head and then a
    rule, and all pairs would be thousands: each rule comes behind the heads of BERT, with and without their pooler, and
    each other head in front of the rule most used and of those that hold most.
    """
    bf16, classes_of = torch.bfloat16, {"label": 3, "value": 1, "label_set": 33}
    rules = [(kind, rule) for kind in KINDS for rule in RULES if kind == "label" or rule in _RULES_OF_ANY_KIND]
    tokens: list[dict[str, Any]] = [*({"layout": name} for name in POOLINGS), {"layout": "mean", "is_masked": True}]
    for dtype in FEATURE_DTYPES:
        heads, behind = [*tokens, {"has_bias": False}], [{"layout": "pooled"}]
        if dtype != torch.float32:  # its poolers are library products
            heads += [
                {"layout": "last", "pooler": "tanh"},
                *({"layout": "first", "pooler": name} for name in ("gelu", "relu")),
            ]
            behind += [{"layout": "first", "pooler": "tanh"}]
        pairs = [*itertools.product(behind, rules), *itertools.product(heads, _HEAVY_RULES)]
        for head, (kind, rule) in pairs:
            yield _specialisation(dtype, classes_of[kind], kind=kind, rule=rule, **head)
    yield _specialisation(bf16, 3, layout="first", by_layer=True)
    # As many classes as a program holds: the most registers.
    for dtype in (torch.float32, bf16):
        yield from (_specialisation(dtype, MAX_CLASSES, rule=rule) for rule in ("agreement", "divergence", "vote"))
    yield _specialisation(bf16, MAX_CLASSES, kind="label_set")
    yield _specialisation(bf16, MAX_CLASSES, layout="first", pooler="tanh")


def _specialisation(
    dtype: torch.dtype,
    classes: int,
    kind: str = "label",
    rule: str = "agreement",
    layout: str = "pooled",
    pooler: str | None = None,
    by_layer: bool = False,
    is_masked: bool = False,
    has_bias: bool = True,
) -> tuple[str, Launch]:
    hidden_size, stack = 768, (1,) if by_layer else ()
    with torch.device("meta"):
        per_row, per_result = torch.empty(1, dtype=torch.int32), torch.empty(1, dtype=torch.int64)
        memory = torch.empty(1, memory_words(kind, rule, classes), dtype=torch.int32)
        bias = torch.empty(hidden_size, dtype=dtype)
        launch = exit_step_launch(
            torch.empty(1, hidden_size, dtype=dtype),
            torch.empty(*stack, classes, hidden_size, dtype=dtype),
            torch.empty(*stack, classes, dtype=dtype) if has_bias else None,
            RowState(torch.empty(1, dtype=torch.int8), per_row, memory, per_result),
            torch.empty(1, classes),
            per_result,
            cu_seqlens=None if layout == "pooled" else torch.empty(2, dtype=torch.int32),
            pooling=None if layout == "pooled" else layout,
            key_mask=torch.empty(1, dtype=torch.bool) if is_masked else None,
            pooler=Pooler(torch.empty(hidden_size, hidden_size, dtype=dtype), bias, pooler) if pooler else None,
            layer=per_row if by_layer else 1,
            last=12,
            kind=kind,
            rule=rule,
            patience=per_row if by_layer else 1,
            threshold=0.0,
            exit_at=per_result if rule == "given" else None,
        )
    flags = {"by-layer": by_layer, "masked": is_masked, "plain": not has_bias}
    words = [kind, classes, layout, rule, pooler, *(name for name, is_on in flags.items() if is_on)]
    name = "-".join(str(word) for word in words if word is not None)
    return f"exit_step-{str(dtype).removeprefix('torch.')}-{name}", launch
