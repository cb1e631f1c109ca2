"""Launches that one place makes again and again, on a GPU that is not there: what a launcher is called with is written
down instead of launched."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

from bench import host  # noqa: E402
from bench.stub import StubDriver, stub_gpu  # noqa: E402
from pabee_fast.kernels import add_norm, prepared, table  # noqa: E402
from tests.kernels.launch_cases import (  # noqa: E402
    HIDDEN_SIZE,
    exit_step_arguments,
    plan_arguments,
    pool_arguments,
)
from tests.kernels.layer_cases import add_norm_arguments, bias_act_arguments  # noqa: E402
from tests.kernels.test_prepared import plainly  # noqa: E402

HEADS = 2


def joined_arguments(tokens: int, **changes: Any) -> dict[str, Any]:
    width = HEADS * HIDDEN_SIZE
    product = torch.zeros(tokens, 3 * width, dtype=torch.bfloat16)
    biases = dict.fromkeys(("query_bias", "value_bias"), torch.zeros(HEADS, HIDDEN_SIZE, dtype=torch.bfloat16))
    return {"product": product, "cu_seqlens": torch.arange(tokens + 1).int(), "key_mask": None} | biases | changes


def without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


Arguments = dict[str, Any]
PLACES: dict[str, tuple[Arguments, Callable[[int], Arguments]]] = {
    "exit_step": (
        {"head": exit_step_arguments()["head"]},
        lambda rows: without(exit_step_arguments(rows=rows, patience=rows, threshold=0.5), "head"),
    ),
    "plan": ({}, plan_arguments),
    "pool": ({}, pool_arguments),
    "short_attention": ({"heads": HEADS, "head_dim": HIDDEN_SIZE, "scaling": 0.5}, joined_arguments),
    "add_norm": (
        without(add_norm_arguments(), "product", "residual"),
        lambda tokens: without(add_norm_arguments(tokens), "bias", "gain", "shift", "eps"),
    ),
    "bias_act": (
        without(bias_act_arguments(), "product"),
        lambda n: without(bias_act_arguments(n), "bias", "activation"),
    ),
}
"""Of each function, which arguments stay, and the others for so many rows."""


def keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory that is allocated anew be the same for one size, so that launches can be compared by addresses."""
    kept: dict[Any, Tensor] = {}

    def new_empty(like: Tensor, size: Any, *_: Any) -> Tensor:
        key = (like.dtype, torch.Size(size if isinstance(size, tuple) else (size,)))
        return kept.setdefault(key, torch.zeros(key[1], dtype=like.dtype))

    monkeypatch.setattr(Tensor, "new_empty", new_empty)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubDriver]:
    keep_memory(monkeypatch)
    stub = StubDriver(is_recording=True)
    with stub_gpu(stub):
        yield stub


def is_triton_s_own(launch: tuple[Any, ...]) -> bool:
    return any(isinstance(value, Tensor) for value in launch)


def test_every_place_is_tried() -> None:
    assert PLACES.keys() == table.REPEATED.keys()


@pytest.mark.parametrize("name", PLACES)
def test_a_place_gives_the_launcher_what_triton_s_own_call_gives_it(name: str, gpu: StubDriver) -> None:
    fixed, others = PLACES[name]
    place = table.REPEATED[name](**fixed)
    small, large = others(4), others(40)
    for given in (small, small, large, large):
        place(**given)
    for given in (small, large):
        table.REPEATED[name](**fixed)(**given)  # another place, for which Triton need not be asked again
    for given in (small, large):
        prepared._prepared.clear()
        table.REPEATED[name](**fixed)(**given)
    assert [is_triton_s_own(launch) for launch in gpu.launches] == [True, *[False] * 5, True, True]
    first, again, other, other_again, elsewhere, elsewhere_other, own, own_other = map(plainly, gpu.launches)
    assert first == again == elsewhere == own
    assert other == other_again == elsewhere_other == own_other
    assert first != other


@pytest.mark.parametrize("name", PLACES)
def test_a_place_launches_nothing_for_no_rows(name: str, gpu: StubDriver) -> None:
    fixed, others = PLACES[name]
    table.REPEATED[name](**fixed)(**others(0))
    assert not gpu.launches


def norm(dtype: torch.dtype = torch.float32) -> add_norm.AddNorm:
    vector = torch.zeros(64, dtype=dtype)
    return add_norm.AddNorm(bias=vector, gain=vector, shift=vector, eps=1e-5)


def tokens(count: int = 4, begin: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of 64 numbers each; those that begin at an odd element are aligned no more."""
    return torch.zeros(count * 64 + 1, dtype=dtype)[begin : begin + count * 64].view(count, 64)


@pytest.mark.parametrize("change", [{"begin": 1}, {"dtype": torch.bfloat16}], ids=str)
def test_tensors_of_another_kind_get_the_kernel_that_triton_compiles_for_them(
    change: dict[str, Any], gpu: StubDriver
) -> None:
    place = norm()
    for given in ({}, change, {}, change, {}):
        place(product=tokens(**given), residual=tokens(**given))
    usual, other, *rest = [launch[4] for launch in gpu.launches]
    assert other is not usual
    assert rest == [usual, other, usual]


def test_tokens_of_another_width_or_what_hides_some_are_pooled_by_another_kernel(gpu: StubDriver) -> None:
    """A layer pools what was attended to, of as many numbers as its heads have, and the residual."""
    place, ends = table.REPEATED["pool"](), torch.arange(5).int()
    for _ in range(2):
        for width, mask in ((64, None), (32, None), (64, torch.ones(4).bool())):
            place(features=torch.zeros(4, width), cu_seqlens=ends, pooling="mean", key_mask=mask)
            place(features=torch.zeros(4, width), cu_seqlens=ends, pooling="first", key_mask=mask)
    functions = [launch[4] for launch in gpu.launches]
    assert functions[:6] == functions[6:] and len(set(functions)) == 6
    assert [is_triton_s_own(launch) for launch in gpu.launches[6:]] == [False] * 6


def test_a_residual_alone_that_is_not_aligned_counts_too(gpu: StubDriver) -> None:
    place = norm()
    for begin in (0, 1):
        place(product=tokens(), residual=tokens(begin=begin))
    usual, other = [launch[4] for launch in gpu.launches]
    assert other is not usual


def test_a_place_leaves_to_triton_what_is_on_another_device_than_the_current_one(gpu: StubDriver) -> None:
    place = norm()
    here = gpu.device
    for device in (here, 1, here):
        gpu.device = device
        place(product=tokens(), residual=tokens())
    assert [is_triton_s_own(launch) for launch in gpu.launches] == [True, True, False]


def test_a_place_tells_whoever_asks_to_be_told_of_launches(gpu: StubDriver) -> None:
    place, hook = norm(), triton.knobs.runtime.launch_enter_hook
    place(product=tokens(), residual=tokens())
    hook.add(print)
    try:
        place(product=tokens(), residual=tokens())
    finally:
        hook.remove(print)
    assert gpu.launches[-1][7] is hook


def test_a_launch_that_is_not_the_one_to_be_repeated_is_found(gpu: StubDriver) -> None:
    product, vector = tokens(), torch.zeros(64)
    launch = add_norm.add_norm_launch(product, vector, product, vector, vector, eps=1e-5)
    values = (product.data_ptr(), *[vector.data_ptr()] * 2, product.data_ptr(), vector.data_ptr(), 4, 1e-5)
    with pytest.raises(AssertionError, match="another launch"):
        prepared.repeat(launch, (1, 1), values)


def test_a_layer_with_its_exit_step_is_launched_again_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    stubs: list[StubDriver] = []

    def recording() -> StubDriver:
        stubs.append(StubDriver(is_recording=True))
        return stubs[-1]

    with torch.no_grad(), host.Work(recording).ready() as calls:
        for _ in range(2):
            calls["layer with exit step, plan and read-back"]()
    launches = stubs[-1].launches
    once = len(launches) // 2
    assert [launch[4] for launch in launches[:once]] == [launch[4] for launch in launches[once:]]
    assert once == len({"attention", "two norms", "and", "activation", "pool", "step", "plan"})
    assert [is_triton_s_own(launch) for launch in launches[once:]] == [False] * once
