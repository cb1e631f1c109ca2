"""What is checked when layers and heads are bound, since kernels are launched without checks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.models import family_of
from pabee_fast.runtime import ops
from pabee_fast.runtime.bound import HeadStep
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from pabee_fast.runtime.stock import parts_of, why_not_fused
from tests.conftest import padded_rows, tiny_model, tiny_stock

LENGTHS = [7, 3, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(7)}, r"a head's bias is \[7\]; give it the shape \[classes\], here \[3\]"),
        ({"weight": torch.zeros(32, 3).T}, "a head's weight is not contiguous"),
        ({"weight": torch.zeros(3, 31)}, r"a head's weight is \[3, 31\]; .*here \[3, 32\]"),
        ({"weight": torch.zeros(4, 32)}, r"a head's weight is \[4, 32\]; .*here \[3, 32\]"),
        ({"weight": torch.zeros(3, 32).double()}, "a head's weight is torch.float64; convert it to one of"),
    ],
)
def test_a_head_that_no_kernel_could_read_is_refused_before_a_row_is_run(
    change: dict[str, torch.Tensor], message: str
) -> None:
    model = tiny_model("bert", head="linear", pooling="first")
    for name, value in change.items():
        setattr(model.exit_heads[0], name, nn.Parameter(value))
    engine, batch = Engine(model), pack(model, **padded_rows(LENGTHS))
    with pytest.raises(ValueError, match=message):
        engine.run(batch, pf.Patience(1))


def test_what_a_pooler_gives_must_be_what_its_head_reads() -> None:
    state = ops.RowState(torch.ones(2, dtype=torch.int8), *[torch.empty(0)] * 3)
    rows = ops.ExitRows(
        torch.zeros(6, 4), state, torch.empty(0), torch.empty(0), torch.tensor([0, 2, 6]).int(), "first"
    )
    rule, head = ops.ExitRule("label", "agreement", layer=1, last=2), ops.ExitHead(torch.ones(3, 5))
    with pytest.raises(
        ValueError, match=r"what a head reads is \[2, 4\]; give it the shape \[rows, width\], here \[2, 5\]"
    ):
        HeadStep(head, nn.Identity())(rows, rule)


CHANGES: dict[str, Callable[[Any], None]] = {
    "gain": lambda block: setattr(block.norm, "weight", nn.Parameter(torch.ones(33))),
    "shift": lambda block: setattr(block.attention_norm, "bias", nn.Parameter(torch.ones(31))),
    "bias": lambda block: setattr(block.up, "bias", nn.Parameter(torch.ones(1))),
    "output": lambda block: setattr(block.output, "weight", nn.Parameter(torch.ones(33, 32))),
    "down": lambda block: setattr(block.down, "weight", nn.Parameter(torch.ones(31, 48))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_whose_parameters_do_not_fit_one_another_is_left_to_transformers(change: str) -> None:
    model = tiny_stock("bert")
    layer, family = model.bert.encoder.layer[0], family_of(model)
    assert why_not_fused(parts_of(layer), family.blocks(layer)) is None
    [block] = family.blocks(layer)
    CHANGES[change](block)
    assert why_not_fused(parts_of(layer), [block]) == "its parameters do not fit one another in shape"


def test_hidden_states_that_a_layer_leaves_in_another_order_of_memory_are_read_rightly() -> None:
    hidden, ends = torch.randn(4, 6).T, torch.tensor([0, 2, 6]).int()
    assert torch.equal(ops.pool(hidden, ends, pooling="last"), hidden[[1, 5]])
    plan = reference.plan(torch.tensor([0, 1], dtype=torch.int8), ends, torch.arange(2), torch.zeros(2).int())
    moved, _ = ops.gather(hidden, plan.starts, plan.cu_seqlens, rows=1, tokens=4, longest=4)
    assert torch.equal(moved, hidden[2:])
