"""What a call is checked for: every argument that is wrong is named, with the fix, before anything is changed."""

from typing import Any

import pytest
import torch

from pabee_fast.kernels import checks, reference
from tests.kernels.launch_cases import (
    CLASSES,
    HIDDEN_SIZE,
    RESULTS,
    ROWS,
    exit_step_arguments,
    gather_arguments,
    plan_arguments,
)

ENDS = torch.arange(ROWS + 1, dtype=torch.int32)
WRONG_FOR_EXIT_STEP: list[tuple[dict[str, Any], str]] = [
    (
        {"features": torch.zeros(ROWS, HIDDEN_SIZE, dtype=torch.float64)},
        r"features is torch.float64; convert it to one",
    ),
    ({"features": torch.zeros(1, ROWS, HIDDEN_SIZE)}, r"features is \[1, 4, 8\]; give it the shape \[lines"),
    (
        {"features": torch.zeros(ROWS + 1, HIDDEN_SIZE)},
        r"features is \[5, 8\]; give it .*\[rows, hidden_size\], here \[4",
    ),
    ({"features": torch.zeros(HIDDEN_SIZE, ROWS).T}, r"features is not contiguous; make it so"),
    ({"weight": torch.zeros(CLASSES, HIDDEN_SIZE + 1)}, r"weight is \[3, 9\]; give it .*here \[3, 8\]"),
    ({"weight": torch.zeros(CLASSES, HIDDEN_SIZE).half()}, r"weight is torch.float16; convert it to torch.float32"),
    ({"weight": torch.zeros(0, HIDDEN_SIZE), "logits": torch.zeros(RESULTS, 0)}, r"weight is \[0, 8\]; .* one class"),
    ({"weight": torch.zeros(CLASSES, HIDDEN_SIZE, device="meta")}, r"weight is on meta; move it to cpu"),
    ({"bias": torch.zeros(CLASSES + 1)}, r"bias is \[4\]; .*here \[3\]"),
    ({"keep": torch.ones(ROWS, dtype=torch.bool)}, r"keep is torch.bool; convert it to torch.int8"),
    ({"streak": torch.zeros(ROWS, dtype=torch.int64)}, r"streak is torch.int64; convert it to torch.int32"),
    ({"memory": torch.zeros(ROWS, 2, dtype=torch.int32)}, r"memory is \[4, 2\]; .*\[rows, words\], here \[4, 1\]"),
    ({"name": "vote"}, r"memory is \[4, 1\]; .*\[rows, words\], here \[4, 3\]"),
    ({"row_ids": torch.arange(ROWS + 1)}, r"row_ids is \[5\]"),
    ({"logits": torch.zeros(RESULTS, CLASSES).half()}, r"logits is torch.float16"),
    ({"exit_layers": torch.zeros(RESULTS + 1, dtype=torch.int64)}, r"exit_layers is \[7\]"),
    ({"cu_seqlens": ENDS}, r"cu_seqlens is a tensor and pooling None; say which token"),
    ({"key_mask": torch.ones(ROWS, dtype=torch.bool)}, r"key_mask is a tensor and pooling None"),
    ({"pooling": "first"}, r"cu_seqlens is None and pooling 'first'; say where the rows lie"),
    ({"pooling": "max", "cu_seqlens": ENDS}, r"pooling is 'max'; choose one of 'first', 'last', 'mean'"),
    ({"pooling": "first", "cu_seqlens": ENDS.long()}, r"cu_seqlens is torch.int64; convert it to torch.int32"),
    ({"layer": 0}, r"layer is 0; layers are counted from 1"),
    ({"kind": "class"}, r"kind is 'class'; choose one of 'label', 'value', 'label_set'"),
    ({"kind": "value"}, r"kind is 'value' and weight has 3 classes"),
    ({"name": "energy"}, r"rule is 'energy'; choose one of 'agreement', 'confidence', 'entropy'"),
    (
        {"name": "entropy", "kind": "label_set", "memory": torch.zeros(ROWS, 0, dtype=torch.int32)},
        r"kind is 'label_set' and rule 'entropy'; only 'label'",
    ),
    (
        {"name": "entropy", "memory": torch.zeros(ROWS, 0, dtype=torch.int32)},
        r"threshold is 0.0; kind 'label' by rule 'entropy' needs one above 0",
    ),
    ({"patience": 0}, r"patience is 0; rule 'agreement' needs at least 1"),
    ({"name": "given"}, r"exit_at is None and rule is 'given'"),
    ({"exit_at": torch.zeros(RESULTS, dtype=torch.int64)}, r"exit_at is a tensor and rule is 'agreement'"),
    ({"name": "given", "exit_at": torch.zeros(ROWS, dtype=torch.int64)}, r"exit_at is \[4\]; .*here \[6\]"),
    (
        {"kind": "value", "weight": torch.zeros(1, HIDDEN_SIZE), "bias": None, "logits": torch.zeros(RESULTS, 1)},
        r"threshold is 0.0; kind 'value' by rule 'agreement' needs one above 0",
    ),
]
WRONG_FOR_PLAN: list[tuple[dict[str, Any], str]] = [
    ({"keep": torch.ones(ROWS, 1, dtype=torch.int8)}, r"keep is \[4, 1\]; give it the shape \[rows\]"),
    ({"cu_seqlens": torch.arange(ROWS, dtype=torch.int32)}, r"cu_seqlens is \[4\]; .*\[rows \+ 1\], here \[5\]"),
    ({"row_ids": torch.arange(ROWS).int()}, r"row_ids is torch.int32; convert it to torch.int64"),
    ({"streak": torch.zeros(2 * ROWS, dtype=torch.int32)[::2]}, r"streak is not contiguous"),
]
WRONG_FOR_GATHER: list[tuple[dict[str, Any], str]] = [
    ({"hidden": torch.zeros(())}, r"hidden has no dimensions"),
    ({"hidden": torch.zeros(HIDDEN_SIZE, 9).T}, r"hidden is not contiguous"),
    ({"starts": torch.tensor([0, 3])}, r"starts is torch.int64; convert it to torch.int32"),
    ({"cu_seqlens": torch.zeros(1, 3, dtype=torch.int32)}, r"cu_seqlens is \[1, 3\]"),
    ({"rows": 3}, r"rows is 3, starts has 2 entries and cu_seqlens 3"),
    ({"tokens": 10}, r"tokens is 10, longest 3, rows 2 and hidden has 9 tokens"),
    ({"longest": 2}, r"tokens is 5, longest 2"),
    ({"memory": torch.zeros(4, 1, dtype=torch.int32)}, r"memory and sources go together"),
    ({"memory": torch.zeros(4, 1), "sources": torch.zeros(2, dtype=torch.int32)}, r"memory is torch.float32"),
    ({"memory": torch.zeros(4, 1, dtype=torch.int32), "sources": torch.zeros(2)}, r"sources is torch.float32"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_EXIT_STEP, ids=lambda value: str(value)[:40])
def test_exit_step_names_what_is_wrong_and_changes_nothing(changes: dict[str, Any], message: str) -> None:
    arguments = exit_step_arguments(**changes)
    with pytest.raises(ValueError, match=message):
        reference.exit_step(**arguments)
    assert arguments["rows"].state.keep.all()


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_PLAN, ids=lambda value: str(value)[:40])
def test_plan_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.plan(**plan_arguments(**changes))


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_GATHER, ids=lambda value: str(value)[:40])
def test_gather_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.gather(**gather_arguments(**changes))


def test_a_row_s_memory_holds_what_its_rule_compares_with() -> None:
    assert [checks.memory_words("label_set", "agreement", classes) for classes in (1, 32, 33, 1000)] == [1, 1, 2, 32]
    assert checks.memory_words("label", "given", 1000) == checks.memory_words("value", "agreement", 1) == 1
    by_rule = {rule: checks.memory_words("label", rule, 7) for rule in checks.RULES}
    per_class = {"divergence": 7, "vote": 7}
    assert by_rule == {"agreement": 1, "given": 1, "confidence": 0, "entropy": 0, "none": 0} | per_class
    with pytest.raises(ValueError, match="kind is 'labels'"):
        checks.memory_words("labels", "agreement", 3)
