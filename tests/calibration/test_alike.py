"""Heads that answer alike whatever the row."""

import logging

import pytest
import torch

from pabee_fast.calibration.alike import alike_layers, share_alike, warn_of_alike_heads
from pabee_fast.policies import AnswerKind
from tests.calibration.traces import made_up

KINDS: list[AnswerKind] = ["label", "label_set", "value"]


def heads(kind: AnswerKind, rows: int = 200) -> list[torch.Tensor]:
    """Six heads of random answers, the second and third of which say the same to every row."""
    made = list(made_up(rows, kind=kind, classes=1 if kind == "value" else 3).logits)
    made[1], made[2] = made[1][:1].expand(rows, -1), made[2][:1].expand(rows, -1)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_of_heads_that_say_the_same_to_every_row_are_found(kind: AnswerKind) -> None:
    assert alike_layers(heads(kind), kind) == [2, 3]
    assert alike_layers(heads(kind)[1:], kind, first_layer=2) == [2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_where_full_depth_says_the_same_to_every_row_no_head_is_at_fault(kind: AnswerKind) -> None:
    made = heads(kind)
    assert alike_layers([*made[:-1], made[1]], kind) == []


def test_a_rare_answer_that_a_head_finds_as_seldom_as_full_depth_is_no_fault() -> None:
    rare = torch.tensor([[1.0, 0.0]] * 97 + [[0.0, 1.0]] * 3)
    never = torch.tensor([[1.0, 0.0]] * 100)
    assert alike_layers([rare, never, rare], "label") == [2]


def test_of_few_rows_nothing_is_said() -> None:
    assert alike_layers(heads("label", rows=49), "label") == []


def test_the_share_is_that_of_the_most_frequent_answer() -> None:
    logits = torch.eye(3)[[0, 1, 1, 2]]
    assert share_alike(logits, "label", logits) == 0.5
    values = torch.tensor([[0.0], [0.01], [0.02], [5.0]])
    assert share_alike(values, "value", values) == 0.75


def test_the_warning_names_the_layers_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pabee_fast.test")
    with caplog.at_level(logging.WARNING, "pabee_fast"):
        warn_of_alike_heads(logger, heads("label"), "label")
        warn_of_alike_heads(logger, list(made_up(200).logits), "label")
    [record] = caplog.records
    assert "the heads of layers 2, 3 answer 95% of the rows or more alike" in record.message
