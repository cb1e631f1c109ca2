"""What a call is checked for, and what a launch is made of; nothing here runs a kernel."""

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

from pabee_fast.kernels import checks, launch, reference
from pabee_fast.kernels.checks import Pooler, RowState
from tests.kernels.layer_cases import add_norm_arguments, bias_act_arguments

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


ENDS = torch.arange(ROWS + 1, dtype=torch.int32)
POOLER = Pooler(torch.zeros(HIDDEN_SIZE, HIDDEN_SIZE), None, "tanh")
MIXED: dict[str, Any] = {
    "layer": torch.ones(ROWS, dtype=torch.int32),
    "weight": torch.zeros(2, CLASSES, HIDDEN_SIZE),
    "bias": None,
    "patience": torch.ones(2, dtype=torch.int32),
}
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
    ({"rule": "vote"}, r"memory is \[4, 1\]; .*\[rows, words\], here \[4, 3\]"),
    ({"row_ids": torch.arange(ROWS + 1)}, r"row_ids is \[5\]"),
    ({"logits": torch.zeros(RESULTS, CLASSES).half()}, r"logits is torch.float16"),
    ({"exit_layers": torch.zeros(RESULTS + 1, dtype=torch.int64)}, r"exit_layers is \[7\]"),
    ({"cu_seqlens": ENDS}, r"cu_seqlens is a tensor and pooling None; say which token"),
    ({"key_mask": torch.ones(ROWS, dtype=torch.bool)}, r"key_mask is a tensor and pooling None"),
    ({"pooling": "first"}, r"cu_seqlens is None and pooling 'first'; say where the rows lie"),
    ({"pooling": "max", "cu_seqlens": ENDS}, r"pooling is 'max'; choose one of 'first', 'last', 'mean'"),
    ({"pooling": "first", "cu_seqlens": ENDS.long()}, r"cu_seqlens is torch.int64; convert it to torch.int32"),
    ({"pooler": POOLER._replace(activation="silu")}, r"pooler.activation is 'silu'; choose one of 'tanh', 'gelu'"),
    ({"pooler": POOLER._replace(weight=torch.zeros(CLASSES, 5))}, r"pooler.weight is \[3, 5\]; .*here \[8, 8\]"),
    ({"pooler": POOLER._replace(bias=torch.zeros(3))}, r"pooler.bias is \[3\]; .*here \[8\]"),
    ({"pooler": POOLER, "pooling": "mean", "cu_seqlens": ENDS}, r"pooling is 'mean' and there is a pooler.* call pool"),
    (
        {"layer": torch.ones(ROWS, dtype=torch.int32)},
        r"weight is \[3, 8\]; give it the shape \[depth, classes, width\]",
    ),
    (MIXED | {"layer": torch.ones(ROWS + 1, dtype=torch.int32)}, r"layer is \[5\]"),
    (MIXED | {"patience": 1}, r"patience is 1 and layer a tensor; give one int32 for each layer"),
    (MIXED | {"patience": torch.ones(3, dtype=torch.int32)}, r"patience is \[3\]; .*\[depth\], here \[2\]"),
    (MIXED | {"bias": torch.zeros(CLASSES)}, r"bias is \[3\]; .*\[depth, classes\], here \[2, 3\]"),
    (MIXED | {"pooler": POOLER}, r"layer is a tensor and there is a pooler"),
    ({"layer": 0}, r"layer is 0; layers are counted from 1"),
    ({"kind": "class"}, r"kind is 'class'; choose one of 'label', 'value', 'label_set'"),
    ({"kind": "value"}, r"kind is 'value' and weight has 3 classes"),
    ({"rule": "energy"}, r"rule is 'energy'; choose one of 'agreement', 'confidence', 'entropy'"),
    (
        {"rule": "entropy", "kind": "label_set", "memory": torch.zeros(ROWS, 0, dtype=torch.int32)},
        r"kind is 'label_set' and rule 'entropy'; only 'label'",
    ),
    (
        {"rule": "entropy", "memory": torch.zeros(ROWS, 0, dtype=torch.int32)},
        r"threshold is 0.0; kind 'label' by rule 'entropy' needs one above 0",
    ),
    ({"patience": 0}, r"patience is 0; rule 'agreement' needs at least 1"),
    ({"rule": "given"}, r"exit_at is None and rule is 'given'"),
    ({"exit_at": torch.zeros(RESULTS, dtype=torch.int64)}, r"exit_at is a tensor and rule is 'agreement'"),
    ({"rule": "given", "exit_at": torch.zeros(ROWS, dtype=torch.int64)}, r"exit_at is \[4\]; .*here \[6\]"),
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
    assert arguments["state"].keep.all()


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_PLAN, ids=lambda value: str(value)[:40])
def test_plan_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.plan(**plan_arguments(**changes))


@pytest.mark.parametrize(("changes", "message"), WRONG_FOR_GATHER, ids=lambda value: str(value)[:40])
def test_gather_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.gather(**gather_arguments(**changes))


# The package's own __init__ is left out: it brings transformers, and this room knows tensors alone.
IMPORT = """
import sys, types
sys.modules["triton"] = None
package = sys.modules["pabee_fast"] = types.ModuleType("pabee_fast")
package.__path__ = ["pabee_fast"]
from pabee_fast.kernels import checks, launch, reference
"""


def test_the_reference_imports_without_triton() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def kernels() -> dict[str, ModuleType]:
    """The module of every function that has a kernel."""
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    from pabee_fast.kernels import add_norm, attention, bias_act, compact, exit_step, pool

    layer = {"attention": attention, "add_norm": add_norm, "bias_act": bias_act}
    return {"exit_step": exit_step, "pool": pool, "plan": compact, "gather": compact, **layer}


ARGUMENTS = {
    "attention": attention_arguments,
    "exit_step": exit_step_arguments,
    "pool": pool_arguments,
    "plan": plan_arguments,
    "gather": gather_arguments,
    "add_norm": add_norm_arguments,
    "bias_act": bias_act_arguments,
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
    assert kernels["attention"].attention(**attention_arguments(rows=0)).shape == (0, 4, HIDDEN_SIZE)


def test_a_head_too_wide_for_one_program_is_refused(kernels: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match=r"weight has 1025 classes; the kernel takes up to 1024"):
        launch.exit_step_blocks(
            HIDDEN_SIZE, launch.MAX_CLASSES + 1, torch.float32, kind="label", rule="agreement", pooling=None
        )


def test_heads_too_large_for_one_program_are_refused(
    kernels: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is no JITFunction passes for interpreted, so that tensors on a CPU are let in.
    monkeypatch.setattr(kernels["attention"], "attention_kernel", None)
    wide = torch.zeros(3 * ROWS, 2, launch.MAX_HEAD_DIM + 1)
    with pytest.raises(ValueError, match=r"value \[12, 2, 257\]; the kernel takes heads of up to 256 numbers, so call"):
        kernels["attention"].attention(**attention_arguments(value=wide))


def test_attention_on_a_batch_that_shrinks_compiles_nothing_new(kernels: dict[str, ModuleType]) -> None:
    def compiled(rows: int, skipped: int, **changes: Any) -> Any:
        # Heads laid out first, as rotary embeddings leave them: the distance between two heads changes with the tokens.
        sizes = {"query": 4, "key": 2, "value": 2}
        laid = {name: torch.zeros(heads, 3 * rows, HIDDEN_SIZE).transpose(0, 1) for name, heads in sizes.items()}
        marks = {"key_mask": torch.ones(3 * rows + 1, dtype=torch.bool), "positions": torch.zeros(3 * rows + 1).int()}
        marks = {name: mark[skipped : 3 * rows + skipped] for name, mark in marks.items()}
        made = attention_arguments(rows, window=5, **laid, **marks)
        return kernels["attention"].attention_launch(**(made | changes), out=torch.zeros(3 * rows, 4, HIDDEN_SIZE))

    fresh = compiled(16, 0).specialisation()
    assert all(
        compiled(rows, skipped, **changes).specialisation() == fresh
        for rows in (1, 2, 7)
        for skipped in (0, 1)
        for changes in ({}, {"window": 1}, {"scaling": 1.0})
    )


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=20), block=st.sampled_from([16, 32, 64]))
def test_tiles_suffice_for_any_rows_and_hardly_one_to_a_row_is_empty(lengths: list[int], block: int) -> None:
    needed = sum(-(-length // block) for length in lengths)
    assert needed <= launch.attention_tiles(len(lengths), sum(lengths), block) <= needed + len(lengths)


def test_a_batch_that_shrinks_compiles_nothing_new(kernels: dict[str, ModuleType]) -> None:
    first = exit_step_arguments(rows=16)
    fresh = kernels["exit_step"].exit_step_launch(**first).specialisation()
    for rows in (1, 5):
        # A prefix, as compaction leaves it, and a part that is not aligned.
        for part in (slice(0, rows), slice(1, rows + 1)):
            state = RowState(*(tensor[part] for tensor in first["state"]))
            numbers = {"layer": 7, "last": 8, "patience": 5, "threshold": 2.0}
            later = first | numbers | {"state": state, "features": first["features"][:rows]}
            assert kernels["exit_step"].exit_step_launch(**later).specialisation() == fresh

    for name, arguments in (("add_norm", add_norm_arguments), ("bias_act", bias_act_arguments)):
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


def test_a_row_s_memory_holds_what_its_rule_compares_with() -> None:
    assert [checks.memory_words("label_set", "agreement", classes) for classes in (1, 32, 33, 1000)] == [1, 1, 2, 32]
    assert checks.memory_words("label", "given", 1000) == checks.memory_words("value", "agreement", 1) == 1
    by_rule = {rule: checks.memory_words("label", rule, 7) for rule in checks.RULES}
    per_class = {"divergence": 7, "vote": 7}
    assert by_rule == {"agreement": 1, "given": 1, "confidence": 0, "entropy": 0, "none": 0} | per_class
    with pytest.raises(ValueError, match="kind is 'labels'"):
        checks.memory_words("labels", "agreement", 3)


def test_a_kernel_that_cannot_be_compiled_is_named_with_its_specialisation(
    kernels: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of shared memory")

    real = kernels["plan"].plan_kernel
    monkeypatch.setattr(type(real), "run", cannot)
    made = kernels["plan"].plan_launch(**plan_arguments(), result=reference.plan(**plan_arguments()))
    with pytest.raises(RuntimeError, match="out of shared memory") as caught:
        made.run()
    [note] = caught.value.__notes__
    assert note.startswith("plan_kernel, specialised to {'keep_ptr': '*i8'")
    assert "'BLOCK_ROWS': 1024" in note
