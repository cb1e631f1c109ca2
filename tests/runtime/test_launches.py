"""What the runtime launches is what is compiled ahead of time: the engine runs on a CPU with every launch written down
instead of made, and the reference giving the results."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.kernels.launch import Launch
from pabee_fast.models.heads import exit_heads_of
from pabee_fast.runtime import ops
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests import zoo
from tests.conftest import padded_rows, tiny_model

pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

from bench.specialisations import by_name
from pabee_fast.kernels import table

LENGTHS = [7, 1, 12, 5]
POLICIES: list[pf.Policy] = [
    pf.FullDepth(),
    pf.FixedDepth(2),
    pf.Scheduled((2, 6, 1, 3)),
    pf.Patience(1),
    pf.Confidence(0.4),
    pf.Entropy(0.9),
    pf.PatientConfidence(1, 0.9),
    pf.PatientDivergence(1, 0.1),
    pf.Vote(1.2),
]
HEADS = [("pabee", "first"), *itertools.product(("own-pooler", "linear"), ("first", "last", "mean"))]
OPTIONS: dict[str, dict[str, Any]] = {
    "label": {},
    "value": {"num_labels": 1},
    "label_set": {"problem_type": "multi_label_classification"},
}


OF_THE_RULE = {"KIND", "RULE", "memory_ptr", "exit_at_ptr"}


def kinds_of(launch: Launch) -> set[str]:
    """A specialisation up to sizes: which kernel, for which types, layouts and options. The exit step is two things,
    one after the other: a head, and a rule."""
    made = launch.specialisation()
    kept = {name: value for name, value in made.constexprs.items() if type(value) is not int}
    kept |= {name: type_name for name, type_name in made.signature.items() if type_name != "constexpr"}
    name, aligned = made.kernel.__name__, sorted(position for (position,) in made.attrs)
    if name != "exit_step_kernel":
        return {f"{name} {kept} aligned {aligned}"}
    rule = {key: kept.pop(key, None) for key in sorted(OF_THE_RULE)} | {"of": kept["features_ptr"]}
    return {f"{name}, head {kept} aligned {aligned}", f"{name}, rule {rule}"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Every launch that the runtime would make on a GPU."""
    seen: list[Launch] = []
    monkeypatch.setattr(Launch, "run", lambda launch: seen.append(launch))
    for module in table.MODULES:
        monkeypatch.setattr(module, "check_on_device", lambda *args: None)

    def both(name: str, tensor: torch.Tensor) -> Callable[..., Any]:
        modules = ops._triton_kernels()
        assert modules is not None

        def run(*args: Any, **options: Any) -> Any:
            getattr(modules[name], name)(*args, **options)
            return getattr(reference, name)(*args, **options)

        return run

    monkeypatch.setattr(ops, "_kernel", both)
    yield seen


@functools.cache
def named() -> set[str]:
    return set().union(*map(kinds_of, by_name().values()))


def launch_all(model: PreTrainedModel, rows: dict[str, torch.Tensor], policies: list[pf.Policy]) -> None:
    """Runs rows under each policy, in all the ways that choose other kernels."""
    engine = Engine(model, gather_cost=0.0)
    padded = [rows]
    if exit_heads_of(model)[0].pooling == "mean":  # which needs a mask where left padding hides first tokens
        padded.append({name: values.flip(1) for name, values in rows.items()})
    for inputs in padded:
        batch = pack(model, **inputs)
        for policy in policies:
            with contextlib.suppress(pf.InputError):  # the rule needs labels
                engine.run(batch, policy)


def missing(launched: list[Launch]) -> str:
    assert launched
    return "\n".join(sorted(set().union(*map(kinds_of, launched)) - named()))


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("head", "pooling"), HEADS)
def test_every_launch_of_a_rule_and_a_head_is_compiled_ahead_of_time(
    head: str,
    pooling: str,
    dtype: torch.dtype,
    kind: str,
    launched: list[Launch],
) -> None:
    model = tiny_model("bert", head=head, pooling=pooling, **OPTIONS[kind]).to(dtype)
    values = [pf.FullDepth(), pf.Scheduled((2, 6, 1, 3)), pf.Patience(1, threshold=0.1)]
    launch_all(model, padded_rows(LENGTHS), values if kind == "value" else POLICIES)
    assert not missing(launched)


@pytest.mark.parametrize("family", [name for name in zoo.VARIANTS if not zoo.is_vision(name)])
def test_every_launch_of_a_family_is_compiled_ahead_of_time(family: str, launched: list[Launch]) -> None:
    model = zoo.model_with_heads(family).to(torch.bfloat16)
    launch_all(model, zoo.rows(family, LENGTHS), [pf.FullDepth(), pf.Patience(1)])
    assert not missing(launched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "modernbert", "mistral"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_a_mask_hides_makes_no_other_launches_of_attention(
    family: str, first: int, dtype: torch.dtype, launched: list[Launch]
) -> None:
    model = zoo.model_with_heads(family).to(dtype)
    padded = zoo.rows(family, LENGTHS)
    # A hole in the longest row, and with 0 its first token too.
    longest = LENGTHS.index(max(LENGTHS))
    padded["attention_mask"][longest, 3:5] = 0
    padded["attention_mask"][longest, 0] = first
    Engine(model, gather_cost=0.0).run(pack(model, **padded), pf.Patience(1))
    attended = [launch for launch in launched if launch.kernel.__name__ == "attention_kernel"]
    assert attended
    if family == "modernbert":
        assert {launch.arguments["key_mask_ptr"] is None for launch in attended} == {bool(first)}
        # Global layers need no positions, local ones do.
        assert {launch.arguments["positions_ptr"] is None for launch in attended} == {True, False}
    assert not missing(attended)
