"""The tokens of a wave where nobody says: as many as a GPU's free memory has room for, in halves."""

from typing import Any

import pytest
import torch

from pabee_fast.runtime import budget
from pabee_fast.runtime.budget import LEAST, SHARE, TOKEN_BUDGETS, bytes_a_token, default_budget
from pabee_fast.runtime.engine import Engine
from tests.zoo import stock_model

LAYERS = [torch.nn.ModuleList([torch.nn.Linear(768, 3072), torch.nn.Linear(3072, 768), torch.nn.LayerNorm(768)])] * 12


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how much memory a GPU that is not here has left, and how much of it the allocator holds."""

    def put(total: float, held: float = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(total), int(2 * total)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(held) + 5)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)

    return put


def on_cuda(dtype: torch.dtype = torch.bfloat16) -> int:
    return default_budget(torch.device("cuda"), LAYERS, 768, dtype)


def test_a_large_gpu_has_the_largest_waves_and_a_small_one_halves_of_them(free: Any) -> None:
    most, each = TOKEN_BUDGETS["cuda"], bytes_a_token(LAYERS, 768, torch.bfloat16)
    free(140e9)
    assert on_cuda() == most
    for halves in (1, 3):
        free(most * each / SHARE / 2**halves)
        assert on_cuda() == most // 2**halves
    free(1e6)
    assert on_cuda() == LEAST


def test_wider_numbers_take_more_and_what_the_allocator_holds_unused_is_free(free: Any) -> None:
    exactly = TOKEN_BUDGETS["cuda"] * bytes_a_token(LAYERS, 768, torch.bfloat16) / SHARE
    free(exactly)
    assert on_cuda(torch.float32) == on_cuda() // 2
    free(exactly / 2, held=exactly / 2 + 1)
    assert on_cuda() == TOKEN_BUDGETS["cuda"]


def test_a_token_takes_no_less_than_its_widest_arrays() -> None:
    assert bytes_a_token(LAYERS, 768, torch.float32) == 4 * (2 * 3072 + 18 * 768)


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "llama", "vit"])
def test_every_engine_asks_for_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(budget.torch.cuda, "mem_get_info", lambda device: asked.append(device))
    engine = Engine(stock_model(family))
    assert engine.token_budget == TOKEN_BUDGETS["cpu"] and not asked, "a CPU is not asked"
    assert bytes_a_token(engine.layers.modules, engine.model.config.hidden_size, engine.dtype) > 0
