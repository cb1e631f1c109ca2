"""Arguments of every kernel, as they may be; what a test changes in them is wrong or of another size."""

from typing import Any

import torch

from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule, RowState

ROWS, CLASSES, HIDDEN_SIZE, RESULTS = 4, 3, 8, 6


def exit_step_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    """Changes are named by the parts of the three groups."""
    state = RowState(
        keep=torch.ones(rows, dtype=torch.int8),
        streak=torch.zeros(rows, dtype=torch.int32),
        memory=torch.zeros(rows, 1, dtype=torch.int32),
        row_ids=torch.arange(rows),
    )
    logits, exit_layers = torch.zeros(RESULTS, CLASSES), torch.zeros(RESULTS, dtype=torch.int64)
    made = {
        "rows": ExitRows(torch.zeros(rows, HIDDEN_SIZE), _with(state, changes), logits, exit_layers),
        "head": ExitHead(torch.zeros(CLASSES, HIDDEN_SIZE), torch.zeros(CLASSES)),
        "rule": ExitRule("label", "agreement", layer=1, last=9, patience=1),
    }
    arguments = {name: _with(group, changes) for name, group in made.items()}
    assert not changes
    return arguments


def _with(group: Any, changes: dict[str, Any]) -> Any:
    return group._replace(**{name: changes.pop(name) for name in group._fields if name in changes})


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


def disentangled_attention_arguments(rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    states, table = torch.zeros(3 * rows, 4, HIDDEN_SIZE), torch.zeros(5, 4, HIDDEN_SIZE)
    arguments: dict[str, Any] = dict(
        query=states,
        key=states,
        value=states,
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * 3,
        longest=3,
        place_keys=table,
        place_queries=table,
        scaling=None,
        key_mask=None,
    )
    return arguments | changes
