"""Prepared launches, on a GPU that is not there: what a launcher is called with is written down instead of launched."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

from bench.stub import StubDriver, stub_gpu  # noqa: E402
from pabee_fast.kernels import prepared, reference  # noqa: E402
from pabee_fast.kernels.add_norm import add_norm_launch  # noqa: E402
from pabee_fast.kernels.attention import attention_launch  # noqa: E402
from pabee_fast.kernels.bias_act import bias_act_launch  # noqa: E402
from pabee_fast.kernels.compact import gather_launch, plan_launch  # noqa: E402
from pabee_fast.kernels.exit_step import exit_step_launch  # noqa: E402
from pabee_fast.kernels.launch import Launch  # noqa: E402
from pabee_fast.kernels.pool import pool_launch  # noqa: E402
from pabee_fast.kernels.short_attention import short_attention_launch  # noqa: E402
from tests.kernels.launch_cases import (  # noqa: E402
    HIDDEN_SIZE,
    attention_arguments,
    exit_step_arguments,
    gather_arguments,
    plan_arguments,
    pool_arguments,
)
from tests.kernels.layer_cases import add_norm_arguments, bias_act_arguments  # noqa: E402


@pytest.fixture
def gpu() -> Iterator[StubDriver]:
    prepared._say_not_prepared.cache_clear()
    stub = StubDriver(is_recording=True)
    with stub_gpu(stub):
        yield stub


def gathering() -> Launch:
    arguments = gather_arguments(memory=torch.zeros(3, 1, dtype=torch.int32), sources=torch.zeros(2).int())
    tokens = arguments.pop("tokens")
    out, new_memory = torch.zeros(tokens, HIDDEN_SIZE), torch.zeros(2, 1, dtype=torch.int32)
    return gather_launch(**arguments, out=out, new_memory=new_memory)


LAUNCHES: dict[str, Callable[[], Launch]] = {
    "exit_step": lambda: exit_step_launch(**exit_step_arguments(rows=40, patience=5, layer=1, threshold=0.5)),
    "plan": lambda: plan_launch(**plan_arguments(), result=reference.plan(**plan_arguments())),
    "gather": gathering,
    "pool": lambda: pool_launch(**pool_arguments(), out=torch.zeros(4, HIDDEN_SIZE)),
    "attention": lambda: attention_launch(**attention_arguments(window=5), out=torch.zeros(12, 4, HIDDEN_SIZE)),
    "short": lambda: short_attention_launch(**attention_arguments(), out=torch.zeros(12, 4, HIDDEN_SIZE)),
    "add_norm": lambda: add_norm_launch(**add_norm_arguments()),
    "bias_act": lambda: bias_act_launch(**bias_act_arguments()),
}


def by_triton(launch: Launch) -> None:
    launch.kernel[launch.grid](**launch.arguments, **launch.constants.values, **launch.constants.options)


def plainly(args: tuple[Any, ...]) -> list[Any]:
    """What a launcher makes of its arguments: addresses of tensors, and 0 of none."""
    hooks = slice(6, 9)
    plain = [*args[: hooks.start], *args[hooks.stop :]]
    return [value.data_ptr() if isinstance(value, Tensor) else 0 if value is None else value for value in plain]


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_prepared_launch_gives_the_launcher_what_triton_s_own_call_gives_it(name: str, gpu: StubDriver) -> None:
    launch = LAUNCHES[name]()
    launch.run()
    launch.run()
    by_triton(launch)
    first, later, own = gpu.launches
    assert plainly(first) == plainly(later) == plainly(own)
    tensors = [any(isinstance(value, Tensor) for value in args) for args in gpu.launches]
    assert tensors == [True, False, True], "only the second was prepared"


def layer_norm(
    dtype: torch.dtype = torch.float32,
    tokens: int = 4,
    hidden_size: int = 64,
    begin: int = 0,
    bias: bool = True,
    gain: torch.dtype | None = None,
) -> Launch:
    """One whose parts are of another kind; tokens that begin at an odd element are aligned no more."""
    product, residual = (torch.zeros(tokens * hidden_size + 1, dtype=dtype) for _ in range(2))
    product = product[begin : begin + tokens * hidden_size].view(tokens, hidden_size)
    vector = torch.zeros(hidden_size, dtype=dtype)
    residual = residual[: tokens * hidden_size].view(tokens, hidden_size)
    return add_norm_launch(product, vector if bias else None, residual, vector.to(gain or dtype), vector, eps=1e-5)


CHANGES: list[dict[str, Any]] = [
    {},
    {"dtype": torch.bfloat16},
    {"gain": torch.float16},
    {"begin": 1},
    {"hidden_size": 128},
    {"bias": False},
    {"dtype": torch.float16, "begin": 1},
]


def test_a_launch_of_another_kind_is_bound_anew_and_to_what_triton_would_launch(gpu: StubDriver) -> None:
    for _ in range(2):
        for change in CHANGES:
            layer_norm(**change).run()
    functions = [args[4] for args in gpu.launches]
    assert functions[: len(CHANGES)] == functions[len(CHANGES) :]
    assert len(set(functions)) == len(CHANGES)
    gpu.launches.clear()
    for change in CHANGES:
        by_triton(layer_norm(**change))
    assert [args[4] for args in gpu.launches] == functions[: len(CHANGES)]


def test_a_batch_of_another_size_is_launched_by_what_is_bound_with_its_own_numbers(gpu: StubDriver) -> None:
    for tokens in (4, 1, 16, 33):
        layer_norm(tokens=tokens).run()
    assert len({args[4] for args in gpu.launches}) == 1
    assert [args[0] for args in gpu.launches] == [-(-tokens // 32) for tokens in (4, 1, 16, 33)]
    assert [args[9 + 5] for args in gpu.launches] == [4, 1, 16, 33]


def test_a_number_that_needs_64_bits_is_left_to_triton(gpu: StubDriver) -> None:
    launch = layer_norm()
    launch.run()
    launch.run()
    launch.arguments["tokens"] = 2**31
    launch.run()
    assert gpu.launches[0][4] is gpu.launches[1][4] is not gpu.launches[2][4]
    assert isinstance(gpu.launches[2][9], Tensor)


def test_tensors_on_another_device_than_the_current_one_are_left_to_triton(gpu: StubDriver) -> None:
    layer_norm().run()
    gpu.device, here = 1, gpu.device
    layer_norm().run()
    gpu.device = here
    layer_norm().run()
    assert [isinstance(args[9], Tensor) for args in gpu.launches] == [True, True, False]


def test_who_asks_to_be_told_of_launches_is_told(gpu: StubDriver) -> None:
    layer_norm().run()
    hook = triton.knobs.runtime.launch_enter_hook
    hook.add(print)
    try:
        layer_norm().run()
    finally:
        hook.remove(print)
    assert gpu.launches[-1][7] is hook
    assert isinstance(gpu.launches[-1][9], Tensor)


def with_another_grid(real: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, grid: Any, **options: Any) -> Any:
        return real(self, *args, grid=(*grid, 1, 7), **options)

    return run


def with_nothing_compiled(real: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, warmup: bool, **options: Any) -> Any:
        return None if warmup else real(*args, warmup=warmup, **options)

    return run


@pytest.mark.parametrize("other", [with_another_grid, with_nothing_compiled])
def test_where_launchers_are_called_otherwise_triton_launches_and_this_is_said_once(
    other: Callable[..., Any], gpu: StubDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton.JITFunction, "run", other(triton.JITFunction.run))
    for _ in range(3):
        layer_norm().run()
        layer_norm(bias=False).run()
    assert [isinstance(args[9], Tensor) for args in gpu.launches] == [True] * 6
    assert caplog.text.count("launched by Triton's own call") == 1


class Launcher:
    """One that does something in Python, and then calls its C function."""

    profile_scratch_size = 0

    def __init__(self, way: str) -> None:
        self.global_scratch_size: int | None = 0
        self.way = way
        self.calls = 0
        self.reached: list[tuple[Any, ...]] = []
        self.told: list[Any] = []

    def launch(self, *args: Any) -> None:
        self.reached.append(args)

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        place, function, (metadata, *told), values = args[:4], args[4], args[5:9], args[9:]
        self.told.append(told)
        match self.way:
            case "larger grid":
                self.launch(2 * place[0], *place[1:], function, metadata, *told, *values)
            case "other kernel":
                self.launch(*place, 0, metadata, *told, *values)
            case "more values":
                self.launch(*place, function, False, metadata, *told, (*values, 0))
            case "values as one":
                self.launch(*place, function, False, metadata, *told, None, values)
            case _:
                self.launch(*place, function, False, None, metadata, *told, *values)


@pytest.fixture
def launcher(request: pytest.FixtureRequest, gpu: StubDriver) -> Launcher:
    made = Launcher(request.param)
    gpu.launcher_cls = lambda source, metadata: made
    return made


@pytest.mark.parametrize("launcher", ["values last", "values as one", "somebody is told"], indirect=True)
def test_a_launcher_s_c_function_is_called_without_what_it_does_in_python(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = layer_norm()
    with monkeypatch.context() as meanwhile:
        if launcher.way == "somebody is told":
            meanwhile.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [lambda metadata: None])
        launch.run()
    launch.run()
    layer_norm(tokens=33).run()
    assert launcher.calls == 1
    own, prepared_one, larger = launcher.reached
    packs = launcher.way == "values as one"
    count = len(launch.arguments) + len(launch.constants.values)
    before = slice(0, -1 if packs else -count)
    values = [plainly((*[0] * 9, *(args[-1] if packs else args[-count:])))[6:] for args in launcher.reached]
    assert values[0] == values[1]
    assert (own[0], larger[0]) == (1, 2)
    (told,) = launcher.told
    assert [None if any(each is one for one in told) else each for each in own[before]] == [*prepared_one[before]]


@pytest.mark.parametrize(
    "launcher", ["larger grid", "other kernel", "more values", "scratch", "unknown scratch"], indirect=True
)
def test_a_launcher_that_does_more_or_other_is_called_as_a_whole(launcher: Launcher) -> None:
    launcher.global_scratch_size = {"scratch": 16, "unknown scratch": None}.get(launcher.way, 0)
    layer_norm().run()
    layer_norm().run()
    assert launcher.calls == len(launcher.reached) == 2
    assert not any(isinstance(value, Tensor) for value in launcher.reached[1]), "it was prepared"
