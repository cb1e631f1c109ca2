"""What a launch is made of; nothing here runs a kernel."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pabee_fast.kernels import launch, launch_attention, reference
from pabee_fast.kernels.checks import RowState
from tests.kernels.launch_cases import (
    HIDDEN_SIZE,
    ROWS,
    attention_arguments,
    disentangled_attention_arguments,
    exit_step_arguments,
    gather_arguments,
    plan_arguments,
    pool_arguments,
    short_attention_arguments,
)
from tests.kernels.layer_cases import (
    add_norm_arguments,
    bias_act_arguments,
    embed_norm_arguments,
    linear_gelu_arguments,
)

# The package's own __init__ is left out: it brings transformers, and this room knows tensors alone.
IMPORT = """
import sys, types
sys.modules["triton"] = None
package = sys.modules["pabee_fast"] = types.ModuleType("pabee_fast")
package.__path__ = ["pabee_fast"]
from pabee_fast.kernels import checks, launch, launch_attention, reference
"""


def test_the_reference_imports_without_triton() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def kernels() -> dict[str, ModuleType]:
    """The module of every function that has a kernel."""
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    from pabee_fast.kernels import table

    return table.FUNCTIONS


ARGUMENTS = {
    "attention": attention_arguments,
    "short_attention": short_attention_arguments,
    "disentangled_attention": disentangled_attention_arguments,
    "exit_step": exit_step_arguments,
    "pool": pool_arguments,
    "plan": plan_arguments,
    "gather": gather_arguments,
    "add_norm": add_norm_arguments,
    "bias_act": bias_act_arguments,
    "linear_gelu": linear_gelu_arguments,
    "embed_norm": embed_norm_arguments,
}
by_function = pytest.mark.parametrize("name", ARGUMENTS)


@by_function
def test_kernel_and_reference_have_one_signature(kernels: dict[str, ModuleType], name: str) -> None:
    kernel, plain = getattr(kernels[name], name), getattr(reference, name)
    assert inspect.signature(kernel) == inspect.signature(plain)


@by_function
def test_the_kernel_makes_the_reference_s_checks(
    kernels: dict[str, ModuleType], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("refused")

    monkeypatch.setattr(kernels[name], f"check_{name}", refuse)
    with pytest.raises(ValueError, match="refused"):
        getattr(kernels[name], name)(**ARGUMENTS[name]())


@by_function
def test_a_compiled_kernel_refuses_tensors_on_a_cpu(kernels: dict[str, ModuleType], name: str) -> None:
    with pytest.raises(ValueError, match=r"is on cpu .* move it to a CUDA device, or call .*kernels.reference"):
        getattr(kernels[name], name)(**ARGUMENTS[name]())


def test_nothing_is_launched_for_no_rows(kernels: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    # What is no JITFunction passes for interpreted, and this cannot be launched.
    nothing = SimpleNamespace(__name__="nothing", params=[])
    for name, module in kernels.items():
        monkeypatch.setattr(module, f"{name}_kernel", nothing)
    kernels["exit_step"].exit_step(**exit_step_arguments(rows=0))
    found = kernels["plan"].plan(**plan_arguments(rows=0))
    assert (found.cu_seqlens.tolist(), found.counts.tolist()) == ([0], [0, 0, 0])
    with pytest.raises(TypeError):
        kernels["plan"].plan(**plan_arguments())
    hidden, memory = kernels["gather"].gather(**gather_arguments(rows=0, tokens=0, longest=0))
    assert (hidden.shape, memory) == ((0, HIDDEN_SIZE), None)
    assert kernels["pool"].pool(**pool_arguments(rows=0)).shape == (0, HIDDEN_SIZE)
    assert kernels["add_norm"].add_norm(**add_norm_arguments(tokens=0)).shape == (0, HIDDEN_SIZE)
    assert kernels["bias_act"].bias_act(**bias_act_arguments(tokens=0)).shape == (0, HIDDEN_SIZE)
    assert kernels["linear_gelu"].linear_gelu(**linear_gelu_arguments(tokens=0)).shape == (0, HIDDEN_SIZE)
    assert kernels["embed_norm"].embed_norm(**embed_norm_arguments(tokens=0)).shape == (0, HIDDEN_SIZE)
    assert kernels["attention"].attention(**attention_arguments(rows=0)).shape == (0, 4, HIDDEN_SIZE)
    by_place = kernels["disentangled_attention"].disentangled_attention
    assert by_place(**disentangled_attention_arguments(rows=0)).shape == (0, 4, HIDDEN_SIZE)
    short_attention = kernels["short_attention"].short_attention
    assert short_attention(**short_attention_arguments(rows=0)).shape == (0, 4, HIDDEN_SIZE)


def test_a_head_too_wide_for_one_program_is_refused(kernels: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match=r"weight has 1025 classes; the kernel takes up to 1024"):
        launch.exit_step_constants(HIDDEN_SIZE, launch.MAX_CLASSES + 1, torch.float32, "label", "agreement", None)


def test_heads_too_large_for_one_program_are_refused(
    kernels: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is no JITFunction passes for interpreted, so that tensors on a CPU are let in.
    monkeypatch.setattr(kernels["attention"], "attention_kernel", None)
    wide = torch.zeros(3 * ROWS, 2, launch_attention.MAX_HEAD_DIM + 1)
    with pytest.raises(ValueError, match=r"value \[12, 2, 257\]; the kernel takes heads of up to 256 numbers, so call"):
        kernels["attention"].attention(**attention_arguments(value=wide))
    monkeypatch.setattr(kernels["short_attention"], "short_attention_kernel", None)
    with pytest.raises(ValueError, match=r"the kernel takes heads of up to 64 numbers of torch.float32, so call"):
        kernels["short_attention"].short_attention(**short_attention_arguments(value=wide))
    monkeypatch.setattr(kernels["disentangled_attention"], "disentangled_attention_kernel", None)
    with pytest.raises(ValueError, match=r"value \[12, 4, 65\]; the kernel takes heads of up to 64 numbers, so call"):
        wide = torch.zeros(3 * ROWS, 4, launch_attention.MAX_PLACE_HEAD + 1)
        kernels["disentangled_attention"].disentangled_attention(**disentangled_attention_arguments(value=wide))


@pytest.mark.parametrize("name", ["attention", "short_attention"])
def test_attention_on_a_batch_that_shrinks_compiles_nothing_new(kernels: dict[str, ModuleType], name: str) -> None:
    def compiled(rows: int, skipped: int, **changes: Any) -> Any:
        # Heads laid out first, as rotary embeddings leave them: the distance between two heads changes with the tokens.
        sizes = {"query": 4, "key": 2, "value": 2}
        laid = {name: torch.zeros(heads, 3 * rows, HIDDEN_SIZE).transpose(0, 1) for name, heads in sizes.items()}
        marks = {"key_mask": torch.ones(3 * rows + 1, dtype=torch.bool), "positions": torch.zeros(3 * rows + 1).int()}
        marks = {name: mark[skipped : 3 * rows + skipped] for name, mark in marks.items()}
        made = attention_arguments(rows, window=5, **laid, **marks) | changes
        return getattr(kernels[name], f"{name}_launch")(**made, out=torch.zeros(3 * rows, 4, HIDDEN_SIZE))

    fresh = compiled(16, 0).specialisation()
    assert all(
        compiled(rows, skipped, **changes).specialisation() == fresh
        for rows in (1, 2, 7)
        for skipped in (0, 1)
        for changes in ({}, {"window": 1}, {"scaling": 1.0})
    )


def test_attention_by_place_on_a_batch_that_shrinks_compiles_nothing_new(kernels: dict[str, ModuleType]) -> None:
    def compiled(rows: int, longest: int) -> Any:
        made = disentangled_attention_arguments(rows, longest=longest)
        spare = 9 - longest
        tables = {name: torch.zeros(17, 4, HIDDEN_SIZE)[spare : 17 - spare] for name in ("place_keys", "place_queries")}
        out = torch.zeros(3 * rows, 4, HIDDEN_SIZE)
        return (
            kernels["disentangled_attention"].disentangled_attention_launch(**made | tables, out=out).specialisation()
        )

    assert all(compiled(rows, longest) == compiled(16, 9) for rows, longest in ((1, 9), (2, 4), (7, 3)))


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=20), block=st.sampled_from([16, 32, 64]))
def test_tiles_suffice_for_any_rows_and_hardly_one_to_a_row_is_empty(lengths: list[int], block: int) -> None:
    needed = sum(-(-length // block) for length in lengths)
    assert needed <= launch_attention.attention_tiles(len(lengths), sum(lengths), block) <= needed + len(lengths)


def test_a_batch_that_shrinks_compiles_nothing_new(kernels: dict[str, ModuleType]) -> None:
    first = exit_step_arguments(rows=16)
    fresh = kernels["exit_step"].exit_step_launch(**first).specialisation()
    for rows in (1, 5):
        # A prefix, as compaction leaves it, and a part that is not aligned.
        for part in (slice(0, rows), slice(1, rows + 1)):
            state = RowState(*(tensor[part] for tensor in first["rows"].state))
            numbers = {"layer": 7, "last": 8, "patience": 5, "threshold": 2.0}
            later = first | exit_step_arguments(state=state, features=first["rows"].features[:rows], **numbers)
            assert kernels["exit_step"].exit_step_launch(**later).specialisation() == fresh

    def product(tokens: int) -> dict[str, Any]:
        return linear_gelu_arguments(tokens, out=torch.zeros(tokens, HIDDEN_SIZE))

    def embedding(tokens: int) -> dict[str, Any]:
        return embed_norm_arguments(tokens, out=torch.zeros(tokens, HIDDEN_SIZE))

    every = {
        "add_norm": add_norm_arguments, "bias_act": bias_act_arguments, "linear_gelu": product, "embed_norm": embedding
    }  # fmt: skip
    for name, arguments in every.items():
        made = [getattr(kernels[name], f"{name}_launch")(**arguments(n)).specialisation() for n in (16, 1, 5)]
        assert all(each == made[0] for each in made)

    result = reference.plan(**plan_arguments(rows=16))
    whole = kernels["plan"].plan_launch(**plan_arguments(rows=16), result=result).specialisation()
    rest = {name: tensor[1:] for name, tensor in plan_arguments(rows=16).items()}
    assert kernels["plan"].plan_launch(**rest, result=result).specialisation() == whole

    places = {"starts": result.starts, "cu_seqlens": result.cu_seqlens}
    hidden = torch.zeros(64, HIDDEN_SIZE)
    launches = [
        kernels["gather"]
        .gather_launch(
            hidden, hidden, **places, rows=rows, longest=longest, memory=memory, new_memory=memory, sources=sources
        )
        .specialisation()
        for memory in (torch.zeros(16, 3, dtype=torch.int32), torch.zeros(17, 3, dtype=torch.int32)[1:])
        for sources in (result.sources, result.sources[1:])
        for rows, longest in ((16, 4), (1, 1), (3, 16))
    ]
    assert all(each == launches[0] for each in launches)


@pytest.mark.parametrize(
    ("rows", "longest", "grid"),
    [
        (1, 1, (1, 1)),
        (4096, 10, (4096, 2)),
        (4096, 512, (4096, 4)),
        (10**6, 512, (10**6, 1)),
    ],
)
def test_gather_gives_a_row_as_many_programs_as_it_has_blocks_or_as_the_device_can_use(
    rows: int, longest: int, grid: tuple[int, int]
) -> None:
    assert launch.gather_grid(rows, longest, 768, 4096) == grid


def test_a_kernel_that_cannot_be_compiled_is_named_with_its_specialisation(
    kernels: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of shared memory")

    from bench.stub import StubDriver, stub_gpu

    real = kernels["plan"].plan_kernel
    monkeypatch.setattr(type(real), "run", cannot)
    made = kernels["plan"].plan_launch(**plan_arguments(), result=reference.plan(**plan_arguments()))
    with stub_gpu(StubDriver()), pytest.raises(RuntimeError, match="out of shared memory") as caught:
        made.run()
    [note] = caught.value.__notes__
    assert note.startswith("plan_kernel, specialised to {'keep_ptr': '*i8'")
    assert "'BLOCK_ROWS': 1024" in note
