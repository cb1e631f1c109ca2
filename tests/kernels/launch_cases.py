"""Arguments of every kernel, as they may be; what a test changes in them is wrong or of another size."""

from typing import Any

import torch

from pabee_fast.kernels.checks import RowState

ROWS, CLASSES, HIDDEN_SIZE, RESULTS = 4, 3, 8, 6


def exit_step_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(
        features=torch.zeros(rows, HIDDEN_SIZE),
        weight=torch.zeros(CLASSES, HIDDEN_SIZE),
        bias=torch.zeros(CLASSES),
        state=RowState(
            keep=torch.ones(rows, dtype=torch.int8),
            streak=torch.zeros(rows, dtype=torch.int32),
            memory=torch.zeros(rows, 1, dtype=torch.int32),
            row_ids=torch.arange(rows),
        ),
        logits=torch.zeros(RESULTS, CLASSES),
        exit_layers=torch.zeros(RESULTS, dtype=torch.int64),
        cu_seqlens=None,
        pooling=None,
        key_mask=None,
        pooler=None,
        layer=1,
        last=9,
        kind="label",
        rule="agreement",
        patience=1,
        threshold=0.0,
        exit_at=None,
    )
    parts = {name: changes.pop(name) for name in RowState._fields if name in changes}
    arguments["state"] = arguments["state"]._replace(**parts)
    return arguments | changes


def pool_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(
        features=torch.zeros(rows, HIDDEN_SIZE),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32),
        pooling="mean",
        key_mask=None,
    )
    return arguments | changes


def plan_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(
        keep=torch.ones(rows, dtype=torch.int8),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32),
        row_ids=torch.arange(rows),
        streak=torch.zeros(rows, dtype=torch.int32),
    )
    return arguments | changes


def gather_arguments(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(
        hidden=torch.zeros(9, HIDDEN_SIZE),
        starts=torch.tensor([0, 3], dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32),
        rows=2,
        tokens=5,
        longest=3,
        memory=None,
        sources=None,
    )
    return arguments | changes


def attention_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(
        query=torch.zeros(3 * rows, 4, HIDDEN_SIZE),
        key=torch.zeros(3 * rows, 2, HIDDEN_SIZE),
        value=torch.zeros(3 * rows, 2, HIDDEN_SIZE),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * 3,
        scaling=None,
        is_causal=False,
        window=None,
        key_mask=None,
        positions=None,
    )
    return arguments | changes


def short_attention_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    return attention_arguments(rows, **({"longest": 3} | changes))
