"""Cases that hold exit_step and pool against their references; the interpreter and a GPU run the same ones.

Sizes are chosen: 0 rows (nothing to launch), 1 row, primes (no block size divides them), the block size and its
neighbours; 1, 2, 3, 5 classes (all padding but a few), 33 (one bit past a word), 65 (three words, padded to four),
1000 (the most in use); hidden sizes 1 (all padding), 48 (less than a block, and 16-byte aligned), 257 (a prime: never
aligned), 768 (BERT-base). Rows have 1, 2 or 4 tokens, so that a mean of small integers is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.kernels import checks, reference
from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule, RowState
from tests.tolerances import assert_close

LAYERS = 3
UNWRITTEN = -7
THRESHOLDS = {"agreement": 2.0, "given": 2.0, "confidence": 0.7, "entropy": 0.6, "divergence": 0.1}


@dataclass(frozen=True)
class ExitCase:
    """Rows that are given three layers by one rule."""

    rows: int = 37
    hidden_size: int = 48
    classes: int = 3
    kind: str = "label"
    rule: str = "agreement"
    patience: int = 1
    last: int = LAYERS + 1
    pooling: str | None = "first"
    is_masked: bool = False
    has_bias: bool = True

    def __str__(self) -> str:
        words = [self.kind, self.rule, f"{self.patience}of{self.last}", self.pooling or "pooled"]
        flags = {"masked": self.is_masked, "plain": not self.has_bias}
        words += [name for name, is_on in flags.items() if is_on]
        return "-".join([*filter(None, words), f"{self.rows}x{self.hidden_size}x{self.classes}"])


_KINDS_AND_CLASSES = [("label", 3), ("value", 1), ("label_set", 5)]
_OF_CLASSES = ("confidence", "entropy", "divergence", "vote")
EXIT_CASES = [
    *(
        ExitCase(kind=kind, classes=classes, rule=rule, last=2 if rule == "none" else LAYERS + 1)
        for kind, classes in _KINDS_AND_CLASSES
        for rule in ("agreement", "given", "none")
    ),
    *(ExitCase(rule=rule, patience=patience) for rule in _OF_CLASSES for patience in (1, 2)),
    *(ExitCase(rule=rule, classes=classes) for rule in _OF_CLASSES for classes in (1, 33)),
    *(ExitCase(rule=rule, classes=1000, rows=19) for rule in ("divergence", "vote")),
    ExitCase(last=2),
    *(ExitCase(rows=rows) for rows in (0, 1, 8, 16, 17)),
    *(ExitCase(classes=classes) for classes in (1, 2, 5, 33, 1000)),
    *(ExitCase(kind="label_set", classes=classes) for classes in (1, 32, 33, 65, 1000)),
    *(ExitCase(hidden_size=hidden_size, pooling=None) for hidden_size in (1, 257, 768)),
    *(ExitCase(pooling=pooling) for pooling in ("last", "mean")),
    ExitCase(pooling="mean", hidden_size=257, is_masked=True),
    ExitCase(rows=1, hidden_size=1, classes=1, pooling=None, has_bias=False),
    ExitCase(has_bias=False),
]
# Sums of random floats, by every dot's own order of additions.
FLOAT_CASES = [
    ExitCase(rows=37, hidden_size=768, classes=5, rule="none", last=1),
    ExitCase(rows=17, hidden_size=257, classes=33, rule="none", last=1, pooling=None),
    ExitCase(rows=5, hidden_size=768, classes=1, kind="value", rule="none", last=1),
    ExitCase(rows=5, hidden_size=768, classes=1000, kind="label_set", rule="none", last=1),
    ExitCase(rows=17, hidden_size=257, classes=5, rule="none", last=1, pooling="mean"),
]


@dataclass
class _Run:
    """One side of a comparison."""

    state: RowState
    logits: Tensor
    exit_layers: Tensor

    def to(self, device: str) -> "_Run":
        state = RowState(*(tensor.clone().to(device) for tensor in self.state))
        return _Run(state, self.logits.clone().to(device), self.exit_layers.clone().to(device))


def _fresh_run(case: ExitCase, generator: torch.Generator) -> _Run:
    rows, results = case.rows, case.rows + 3
    keep = torch.ones(rows, dtype=torch.int8)
    keep[1::5] = 0
    words = checks.memory_words(case.kind, case.rule, case.classes)
    state = RowState(
        keep=keep,
        streak=torch.full((rows,), -1, dtype=torch.int32),
        memory=torch.zeros(rows, words, dtype=torch.int32),
        row_ids=torch.randperm(results, generator=generator)[:rows],
    )
    return _Run(state, torch.full((results, case.classes), float("nan")), torch.full((results,), UNWRITTEN))


def packed_features(
    rows: int, hidden_size: int, pooling: str, draw: Callable[[int, int], Tensor], is_masked: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features, cu_seqlens and key_mask of packed rows; tokens that nobody reads are NaN."""
    lengths = [(1, 2, 4, 2)[row % 4] for row in range(rows)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    features, mask = draw(int(cu_seqlens[-1]), hidden_size), None
    if pooling == "mean":
        if is_masked:
            # Of four tokens two count, of two one, and of one that one.
            mask = torch.cat([torch.arange(length) % 2 == 0 for length in lengths] or [torch.ones(0, dtype=torch.bool)])
            features[~mask] = float("nan")
    else:
        read = torch.zeros(len(features), dtype=torch.bool)
        read[(cu_seqlens[:-1] if pooling == "first" else cu_seqlens[1:] - 1).long()] = True
        features[~read] = float("nan")
    return features, cu_seqlens, mask


def _features(case: ExitCase, layer: int, integers: bool, generator: torch.Generator) -> dict[str, Any]:
    # Most rows repeat one feature, so that streaks grow.
    def draw(lines: int, hidden_size: int) -> Tensor:
        if not integers:
            return torch.randn(lines, hidden_size, generator=generator)
        feature = torch.randint(-2, 3, (lines, hidden_size), generator=torch.Generator().manual_seed(lines)).float()
        feature[layer::3] = torch.randint(-2, 3, (lines, hidden_size), generator=generator)[layer::3].float()
        for line, number in ((7, float("nan")), (10, float("inf")), (12, float("-inf")), (21, float("nan"))):
            feature[line : line + 1, 0] = number if layer != 2 else 1.0
        return feature

    if case.pooling is None:
        return {"features": draw(case.rows, case.hidden_size)}
    features, cu_seqlens, mask = packed_features(case.rows, case.hidden_size, case.pooling, draw, case.is_masked)
    return {"features": features, "pooling": case.pooling, "cu_seqlens": cu_seqlens, "key_mask": mask}


def _head(case: ExitCase, integers: bool, generator: torch.Generator) -> ExitHead:
    def draw(*shape: int) -> Tensor:
        return (
            torch.randint(-1, 2, shape, generator=generator).float()
            if integers
            else torch.randn(shape, generator=generator)
        )

    bias = draw(case.classes) if case.has_bias else None
    return ExitHead(draw(case.classes, case.hidden_size), bias)


def _moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    return value


def check_exit_step(
    kernel: Callable[..., None], case: ExitCase, dtype: torch.dtype, device: str, *, integers: bool = True
) -> None:
    """Compare `kernel` and reference over layers; with integer features every sum is exact, so ties are ties in both.

    The reference gets the numbers as `dtype` rounds them; sums are float32 in both, so float32's tolerance holds.
    """
    generator = torch.Generator().manual_seed(case.rows + 10 * case.classes + case.hidden_size)
    head = _head(case, integers, generator)
    expected = _fresh_run(case, generator)
    exit_at = torch.randint(1, LAYERS + 2, (case.rows + 3,), generator=generator) if case.rule == "given" else None
    actual = expected.to(device)
    for layer in range(1, LAYERS + 1):
        features = _features(case, layer, integers, generator)
        rule = ExitRule(case.kind, case.rule, layer, case.last, case.patience, THRESHOLDS.get(case.rule, 0.0), exit_at)
        for step, run, where in ((reference.exit_step, expected, "cpu"), (kernel, actual, device)):
            read = {name: _moved(value, where, dtype) for name, value in features.items()}
            step(
                ExitRows(state=run.state, logits=run.logits, exit_layers=run.exit_layers, **read),
                ExitHead(*(_moved(part, where, dtype) for part in head)),
                rule._replace(exit_at=_moved(exit_at, where, dtype)),
            )
        assert actual.exit_layers.tolist() == expected.exit_layers.tolist(), f"exit_layers after layer {layer}"
        for name in ("keep", "streak", "row_ids"):
            found, wanted = getattr(actual.state, name), getattr(expected.state, name)
            assert found.tolist() == wanted.tolist(), f"{name} after layer {layer}"
        if case.rule == "divergence":
            found, wanted = (run.state.memory.view(torch.float32).cpu() for run in (actual, expected))
            assert_close(found, wanted)
        else:
            assert actual.state.memory.tolist() == expected.state.memory.tolist(), f"memory after layer {layer}"
        if integers:
            torch.testing.assert_close(actual.logits.cpu(), expected.logits, rtol=0, atol=0, equal_nan=True)
        else:
            assert_close(actual.logits.cpu(), expected.logits)


@dataclass(frozen=True)
class PoolCase:
    """Packed rows of which one token, or their mean, is read."""

    pooling: str
    rows: int = 37
    hidden_size: int = 48
    is_masked: bool = False

    def __str__(self) -> str:
        return f"{self.pooling}{'-masked' if self.is_masked else ''}-{self.rows}x{self.hidden_size}"


POOL_CASES = [
    *(PoolCase(pooling) for pooling in checks.POOLINGS),
    *(PoolCase("mean", hidden_size=hidden_size, is_masked=True) for hidden_size in (1, 257, 768)),
    *(PoolCase(pooling, rows=rows) for pooling in ("first", "mean") for rows in (0, 1, 8, 9)),
]


def check_pool(pool: Callable[..., Tensor], case: PoolCase, dtype: torch.dtype, device: str) -> None:
    """Compare `pool` and its reference on integers, whose means are exact."""
    generator = torch.Generator().manual_seed(case.rows)

    def draw(lines: int, hidden_size: int) -> Tensor:
        return torch.randint(-2, 3, (lines, hidden_size), generator=generator).to(dtype)

    features, cu_seqlens, mask = packed_features(case.rows, case.hidden_size, case.pooling, draw, case.is_masked)
    expected = reference.pool(features, cu_seqlens, pooling=case.pooling, key_mask=mask)
    options = {"pooling": case.pooling, "key_mask": None if mask is None else mask.to(device)}
    actual = pool(features.to(device), cu_seqlens.to(device), **options)
    assert (actual.dtype, actual.shape) == (dtype, (case.rows, case.hidden_size))
    assert torch.equal(actual.cpu(), expected)
