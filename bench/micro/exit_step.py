"""The exit step: one layer's head, streaks and keep flags of every row, while nobody leaves."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.micro.subject import Case, Subject, same, serving, size_of
from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule, Pooler, RowState
from pabee_fast.models.head import through_pooler
from pabee_fast.runtime.bound import HeadStep

TOKENS = 4
"""Of a row behind a pooler: its first token is read alone, and a row's others only space the first ones out."""
NEVER = 1 << 30


Step = Callable[[ExitRows, ExitHead, ExitRule, Pooler | None], None]


@dataclass
class Drawn:
    """Rows after a layer, their head, and what stands before it."""

    rows: ExitRows
    head: ExitHead
    pooler: Pooler | None

    def step(self, function: Step, *, patience: int = NEVER, layer: int = 1) -> None:
        """One exit step."""
        rule = ExitRule("label", "agreement", layer, last=NEVER, patience=patience)
        function(self.rows, self.head, rule, self.pooler)

    def results(self) -> tuple[Tensor, ...]:
        state = self.rows.state
        return (state.keep, state.streak, state.memory, self.rows.logits, self.rows.exit_layers)


def draw(
    rows: int, hidden: int, classes: int, has_pooler: bool, device: torch.device, dtype: torch.dtype,
    *, exact: bool = False,
) -> Drawn:  # fmt: skip
    """Return random rows; `exact` ones are small integers, so that every order of additions gives the same sums."""
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        if exact:
            return torch.randint(-1, 2, shape, generator=generator, device=device).to(dtype)
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    scale, pooler, cu_seqlens = hidden**-0.5, None, None
    if has_pooler:
        pooler = Pooler(numbers(hidden, hidden, scale=scale), numbers(hidden), "relu" if exact else "tanh")
        cu_seqlens = torch.arange(rows + 1, device=device, dtype=torch.int32) * TOKENS
    state = RowState(
        keep=torch.ones(rows, dtype=torch.int8, device=device),
        streak=torch.full((rows,), -1, dtype=torch.int32, device=device),
        memory=torch.zeros(rows, 1, dtype=torch.int32, device=device),
        row_ids=torch.arange(rows, device=device),
    )
    features = numbers(rows * (TOKENS if has_pooler else 1), hidden)
    head = ExitHead(numbers(classes, hidden, scale=scale), numbers(classes))
    logits = torch.full((rows, classes), float("nan"), device=device)
    exit_layers = torch.zeros(rows, dtype=torch.int64, device=device)
    pooling = "first" if has_pooler else None
    return Drawn(ExitRows(features, state, logits, exit_layers, cu_seqlens, pooling), head, pooler)


def in_plain_torch(rows: ExitRows, head: ExitHead, rule: ExitRule, pooler: Pooler | None) -> None:
    """What one would write: Patience on labels, every row computed, nothing read back."""
    features, state, (logits, exit_layers) = rows.features, rows.state, (rows.logits, rows.exit_layers)
    if pooler is not None and rows.cu_seqlens is not None:
        pooled = linear(features[rows.cu_seqlens[:-1]], pooler.weight, pooler.bias)
        features = reference.ACTIVATIONS[pooler.activation](pooled)
    assert head.bias is not None
    scores = linear(features.float(), head.weight.float(), head.bias.float())
    answer = scores.argmax(dim=1).int()
    streak = torch.where(answer == state.memory[:, 0], state.streak + 1, 0)
    leaves = (streak >= rule.patience) & (state.keep != 0)
    state.streak.copy_(streak)
    state.memory[:, 0] = answer
    logits[state.row_ids] = torch.where(leaves[:, None], scores, logits[state.row_ids])
    exit_layers[state.row_ids] = torch.where(leaves, rule.layer, exit_layers[state.row_ids])
    state.keep.masked_fill_(leaves, 0)


def behind_the_pooler(step: Callable[..., None], pool: Callable[..., Tensor]) -> Step:
    """Return the exit step on what a pooler makes of a row's first token, if there is one."""

    def run(rows: ExitRows, head: ExitHead, rule: ExitRule, pooler: Pooler | None) -> None:
        if rows.cu_seqlens is not None:
            pooled = through_pooler(pooler, pool(rows.features, rows.cu_seqlens, pooling="first"))
            rows = ExitRows(pooled, rows.state, rows.logits, rows.exit_layers)
        step(rows, head, rule)

    return run


def as_bound() -> Step:
    """Return the exit step as the runtime has it, bound to each head once."""
    bound: list[tuple[ExitHead, HeadStep]] = []

    def run(rows: ExitRows, head: ExitHead, rule: ExitRule, pooler: Pooler | None) -> None:
        found = next((step for known, step in bound if known is head), None)
        if found is None:
            found = HeadStep(head, pooler)
            bound.append((head, found))
        found(rows, rule)

    return run


def variants(has_pooler: bool, device: torch.device) -> dict[str, Step]:
    """By name, what does the step."""
    pools = serving("pool", device)
    found = {name: behind_the_pooler(step, pools[name]) for name, step in serving("exit_step", device).items()}
    if has_pooler:
        found.pop("kernel", None)  # it is several, as the runtime calls them
        found = {"runtime": as_bound()} | found
    return found | {"torch": in_plain_torch}


def build(rows: int, hidden: int, classes: int, has_pooler: bool, device: torch.device, dtype: torch.dtype) -> Subject:
    """Return the subject; all variants work on the same tensors, whose streaks grow from call to call."""
    functions, sizes = variants(has_pooler, device), (rows, hidden, classes, has_pooler, device, dtype)
    data = draw(*sizes)

    def agree() -> None:
        found = {}
        for name, function in functions.items():
            exact = draw(*sizes, exact=True)
            exact.step(function)
            exact.rows.state.memory[::2] += 1  # half of the rows answer something new at layer 2, and stay
            exact.step(function, patience=1, layer=2)
            found[name] = exact.results()
        left = int((found["reference"][0] == 0).sum())
        assert left in (rows // 2, rows - rows // 2), "half of the rows were to leave"
        same(found)

    state = data.rows.state
    moved = rows * hidden * data.rows.features.element_size() + size_of(*data.head, data.rows.cu_seqlens)
    if data.pooler is not None:
        moved += size_of(data.pooler.weight, data.pooler.bias)
    moved += size_of(state.keep, state.row_ids) + 2 * size_of(state.streak, state.memory)
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
