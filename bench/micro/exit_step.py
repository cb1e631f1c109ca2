"""The exit step: one layer's head, streaks and keep flags of every row, while nobody leaves."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.micro.subject import Case, Subject, same, serving, size_of
from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import Pooler, RowState
from pabee_fast.runtime import ops

TOKENS = 4
"""Of a row behind a pooler: its first token is read alone, and a row's others only space the first ones out."""
NEVER = 1 << 30


@dataclass
class Rows:
    """Rows after a layer, their head, and where results go."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    pooler: Pooler | None
    cu_seqlens: Tensor | None
    state: RowState
    logits: Tensor
    exit_layers: Tensor

    def step(self, function: Callable[..., Any], *, patience: int = NEVER, layer: int = 1) -> None:
        """One exit step by a function with `reference.exit_step`'s arguments."""
        function(
            self.features, self.weight, self.bias, self.state, self.logits, self.exit_layers,
            cu_seqlens=self.cu_seqlens, pooling=None if self.cu_seqlens is None else "first", key_mask=None,
            pooler=self.pooler, layer=layer, last=NEVER, kind="label", rule="agreement", patience=patience,
        )  # fmt: skip

    def results(self) -> tuple[Tensor, ...]:
        return (self.state.keep, self.state.streak, self.state.memory, self.logits, self.exit_layers)


def draw(
    rows: int, hidden: int, classes: int, has_pooler: bool, device: torch.device, dtype: torch.dtype,
    *, exact: bool = False,
) -> Rows:  # fmt: skip
    """Random rows; `exact` ones are small integers, so that every order of additions gives the same sums."""
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        if exact:
            return torch.randint(-1, 2, shape, generator=generator, device=device).to(dtype)
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    scale, pooler, cu_seqlens = hidden**-0.5, None, None
    if has_pooler:
        pooler = Pooler(numbers(hidden, hidden, scale=scale), numbers(hidden), "relu" if exact else "tanh")
        cu_seqlens = torch.arange(rows + 1, device=device, dtype=torch.int32) * TOKENS
    return Rows(
        features=numbers(rows * (TOKENS if has_pooler else 1), hidden),
        weight=numbers(classes, hidden, scale=scale),
        bias=numbers(classes),
        pooler=pooler,
        cu_seqlens=cu_seqlens,
        state=RowState(
            keep=torch.ones(rows, dtype=torch.int8, device=device),
            streak=torch.full((rows,), -1, dtype=torch.int32, device=device),
            memory=torch.zeros(rows, 1, dtype=torch.int32, device=device),
            row_ids=torch.arange(rows, device=device),
        ),
        logits=torch.full((rows, classes), float("nan"), device=device),
        exit_layers=torch.zeros(rows, dtype=torch.int64, device=device),
    )


def through_the_library(step: Callable[..., Any], pool: Callable[..., Any]) -> Callable[..., None]:
    """The exit step behind a pooler that is a library product over pooled rows."""

    def run(
        features: Tensor, *args: Any, cu_seqlens: Tensor, pooling: str, key_mask: None, pooler: Pooler, **options: Any
    ) -> None:
        pooled = linear(pool(features, cu_seqlens, pooling=pooling), pooler.weight, pooler.bias)
        step(reference.ACTIVATIONS[pooler.activation](pooled), *args, **options)

    return run


def in_plain_torch(
    features: Tensor, weight: Tensor, bias: Tensor, state: RowState, logits: Tensor, exit_layers: Tensor,
    *, cu_seqlens: Tensor | None, pooler: Pooler | None, layer: int, patience: int, **options: Any,
) -> None:  # fmt: skip
    """What one would write: Patience on labels, every row computed, nothing read back."""
    if pooler is not None and cu_seqlens is not None:
        pooled = linear(features[cu_seqlens[:-1]], pooler.weight, pooler.bias)
        features = reference.ACTIVATIONS[pooler.activation](pooled)
    scores = linear(features.float(), weight.float(), bias.float())
    answer = scores.argmax(dim=1).int()
    streak = torch.where(answer == state.memory[:, 0], state.streak + 1, 0)
    leaves = (streak >= patience) & (state.keep != 0)
    state.streak.copy_(streak)
    state.memory[:, 0] = answer
    logits[state.row_ids] = torch.where(leaves[:, None], scores, logits[state.row_ids])
    exit_layers[state.row_ids] = torch.where(leaves, layer, exit_layers[state.row_ids])
    state.keep.masked_fill_(leaves, 0)


def variants(has_pooler: bool, device: torch.device) -> dict[str, Callable[..., Any]]:
    """By name, functions with `reference.exit_step`'s arguments."""
    found = serving("exit_step", device)
    if has_pooler and "kernel" in found:
        fused, pool = found.pop("kernel"), serving("pool", device)["kernel"]
        found = {"runtime": ops.exit_step, "fused": fused, "library": through_the_library(fused, pool)} | found
    return found | {"torch": in_plain_torch}


def build(rows: int, hidden: int, classes: int, has_pooler: bool, device: torch.device, dtype: torch.dtype) -> Subject:
    """The subject; all variants work on the same tensors, whose streaks grow from call to call."""
    functions, sizes = variants(has_pooler, device), (rows, hidden, classes, has_pooler, device, dtype)
    data = draw(*sizes)

    def agree() -> None:
        found = {}
        for name, function in functions.items():
            exact = draw(*sizes, exact=True)
            exact.step(function)
            exact.state.memory[::2] += 1  # half of the rows answer something new at layer 2, and stay
            exact.step(function, patience=1, layer=2)
            found[name] = exact.results()
        left = int((found["reference"][0] == 0).sum())
        assert left in (rows // 2, rows - rows // 2), "half of the rows were to leave"
        same(found)

    moved = rows * hidden * data.features.element_size() + size_of(data.weight, data.bias, data.cu_seqlens)
    if data.pooler is not None:
        moved += size_of(data.pooler.weight, data.pooler.bias)
    moved += size_of(data.state.keep, data.state.row_ids) + 2 * size_of(data.state.streak, data.state.memory)
    products = 2 * rows * hidden * (classes + (hidden if has_pooler else 0))
    calls = {name: functools.partial(data.step, function) for name, function in functions.items()}
    return Subject(calls, moved, products, frozenset({"reference"}), agree=agree)


def _case(rows: int, hidden: int, classes: int, has_pooler: bool) -> Case:
    return Case(
        op="exit_step behind a pooler" if has_pooler else "exit_step",
        size=f"{rows}x{hidden}x{classes}",
        rows=rows,
        build=lambda device, dtype: build(rows, hidden, classes, has_pooler, device, dtype),
        is_small=hidden == 768 and (rows, classes) in ((64, 2), (1024, 2), *([] if has_pooler else [(64, 1000)])),
    )


# Rows of a wave as it shrinks, from fewer than fill one multiprocessor to many for each; the hidden sizes of BERT-base
# and BERT-large; the fewest classes and the most in use.
CASES = [
    _case(rows, hidden, classes, has_pooler)
    for has_pooler, rows, hidden, classes in itertools.product(
        (False, True), (64, 1024, 4096, 16384), (768, 1024), (2, 1000)
    )
]
