"""What the runtime launches is what is compiled ahead of time: the engine runs on a CPU with every launch written down
instead of made, and the reference giving the results."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.kernels.launch import Launch
from pabee_fast.runtime import ops
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.packed import pack
from tests import zoo
from tests.conftest import FAMILIES, padded_rows, tiny_model

pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

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
OPTIONS: dict[str, dict[str, Any]] = {
    "label": {},
    "value": {"num_labels": 1},
    "label_set": {"problem_type": "multi_label_classification"},
}


def kind_of(launch: Launch) -> str:
    """A specialisation up to sizes: which kernel, for which types, rules and layouts."""
    made = launch.specialisation()
    words = {name: value for name, value in made.constexprs.items() if not isinstance(value, int)}
    types = {name: type_name for name, type_name in made.signature.items() if type_name != "constexpr"}
    return f"{made.kernel.__name__} {words} {types} aligned {sorted(position for (position,) in made.attrs)}"


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
    return {kind_of(launch) for _, launch in table.specialisations()}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_launch_of_the_runtime_is_compiled_ahead_of_time(
    family: str, dtype: torch.dtype, kind: str, launched: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, **OPTIONS[kind]).to(dtype)
    engine = Engine(model, gather_cost=0.0)
    batch = pack(model, **padded_rows(LENGTHS, family=family))
    for policy, fused_rows in itertools.product(POLICIES, (0, 2048)):
        if kind == "value" and isinstance(policy, pf.Patience):
            policy = pf.Patience(1, threshold=0.1)
        monkeypatch.setattr(ops, "FUSED_POOLER_ROWS", fused_rows)
        try:
            engine.run(batch, policy)
        except pf.InputError:
            continue  # the rule needs labels
    assert launched
    missing = {kind_of(launch) for launch in launched} - named()
    assert not missing, "\n".join(sorted(missing))


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
    missing = {kind_of(launch) for launch in attended} - named()
    assert not missing, "\n".join(sorted(missing))
