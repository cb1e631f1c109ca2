"""Cases that hold a kernel against its reference; the interpreter and a GPU run the same ones.

Sizes are chosen: 0 rows (nothing to launch), 1 row, 1 token, primes (no block size divides them), the block size and
its neighbours; 1, 2, 3, 5 classes (all padding but a few), 33 (one bit past a word), 65 (three words, padded to
four), 1000 (the most in use); hidden sizes 1 (all padding), 48 (less than a block, and 16-byte aligned), 257 (a prime:
never aligned), 768 (BERT-base).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.kernels import checks, launch, reference
from tests.tolerances import assert_close

LAYERS = 3
UNWRITTEN = -7


@dataclass(frozen=True)
class ExitCase:
    """Rows that are given three layers by one rule."""

    rows: int = 37
    hidden_size: int = 48
    classes: int = 3
    kind: str = "label"
    rule: str = "streak"
    is_packed: bool = True
    has_bias: bool = True

    def __str__(self) -> str:
        layout, bias = "packed" if self.is_packed else "pooled", "bias" if self.has_bias else "plain"
        return f"{self.kind}-{self.rule}-{layout}-{bias}-{self.rows}x{self.hidden_size}x{self.classes}"


_KINDS_AND_CLASSES = [("label", 3), ("value", 1), ("label_set", 5)]
EXIT_CASES = [
    *(ExitCase(kind=kind, classes=classes, rule=rule) for kind, classes in _KINDS_AND_CLASSES for rule in checks.RULES),
    *(ExitCase(rows=rows) for rows in (0, 1, 8, 16, 17)),
    *(ExitCase(classes=classes) for classes in (1, 2, 5, 33, 1000)),
    *(ExitCase(kind="label_set", classes=classes) for classes in (1, 32, 33, 65, 1000)),
    *(ExitCase(hidden_size=hidden_size, is_packed=False) for hidden_size in (1, 257, 768)),
    ExitCase(rows=1, hidden_size=1, classes=1, is_packed=False, has_bias=False),
    ExitCase(has_bias=False),
]


@dataclass
class _State:
    keep: Tensor
    streak: Tensor
    answer: Tensor
    row_ids: Tensor
    logits: Tensor
    exit_layers: Tensor

    def to(self, device: str) -> "_State":
        # A copy also where the device is the same.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _State(**{name: tensor.clone().to(device) for name, tensor in fields.items()})


def _fresh_state(case: ExitCase, generator: torch.Generator) -> _State:
    rows, results = case.rows, case.rows + 3
    keep = torch.ones(rows, dtype=torch.int8)
    keep[1::5] = 0
    return _State(
        keep=keep,
        streak=torch.full((rows,), -1, dtype=torch.int32),
        answer=torch.randint(0, 9, (rows, checks.answer_words(case.kind, case.classes)), generator=generator).int(),
        row_ids=torch.randperm(results, generator=generator)[:rows],
        logits=torch.full((results, case.classes), float("nan")),
        exit_layers=torch.full((results,), UNWRITTEN),
    )


def _features(case: ExitCase, layer: int, integers: bool, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    # Lines that no row reads are NaN. Most rows repeat one feature, so that streaks grow.
    rows, hidden_size = case.rows, case.hidden_size
    starts = torch.arange(rows, dtype=torch.int32) * 2 + 1
    if integers:
        feature = torch.randint(-2, 3, (rows, hidden_size), generator=torch.Generator().manual_seed(rows)).float()
        feature[layer::3] = torch.randint(-2, 3, (rows, hidden_size), generator=generator)[layer::3].float()
        for row, number in ((7, float("nan")), (10, float("inf")), (12, float("-inf"))):
            feature[row : row + 1, 0] = number if layer != 2 else 1.0
    else:
        feature = torch.randn(rows, hidden_size, generator=generator)
    if not case.is_packed:
        return feature, None
    lines = torch.full((2 * rows + 1, hidden_size), float("nan"))
    lines[starts] = feature
    return lines, starts


def check_exit_step(
    kernel: Callable[..., None], case: ExitCase, dtype: torch.dtype, device: str, *, integers: bool = True
) -> None:
    """Compare `kernel` and reference over layers; with integer features every sum is exact, so ties are ties in both.

    The reference gets the numbers as `dtype` rounds them; sums are float32 in both, so float32's tolerance holds.
    """
    generator = torch.Generator().manual_seed(case.rows + 10 * case.classes + case.hidden_size)
    shape = (case.classes, case.hidden_size + 1)
    head = torch.randint(-1, 2, shape, generator=generator) if integers else torch.randn(shape, generator=generator)
    weight = head[:, :-1].to(dtype).contiguous()
    bias = head[:, -1].to(dtype).contiguous() if case.has_bias else None
    expected = _fresh_state(case, generator)
    exit_at = torch.randint(1, LAYERS + 2, (case.rows + 3,), generator=generator) if case.rule == "given" else None
    actual = expected.to(device)
    for layer in range(1, LAYERS + 1):
        features, starts = _features(case, layer, integers, generator)
        options: dict[str, Any] = dict(layer=layer, kind=case.kind, rule=case.rule, patience=1, threshold=2.0)
        for step, state, where in ((reference.exit_step, expected, "cpu"), (kernel, actual, device)):
            step(
                features.to(where, dtype),
                weight.to(where),
                None if bias is None else bias.to(where),
                state.keep,
                state.streak,
                state.answer,
                state.row_ids,
                state.logits,
                state.exit_layers,
                starts=None if starts is None else starts.to(where),
                exit_at=None if exit_at is None else exit_at.to(where),
                **options,
            )
        for name in ("keep", "exit_layers", *(["streak", "answer"] if integers else [])):
            assert getattr(actual, name).tolist() == getattr(expected, name).tolist(), f"{name} after layer {layer}"
        if integers:
            torch.testing.assert_close(actual.logits.cpu(), expected.logits, rtol=0, atol=0, equal_nan=True)
        else:
            assert_close(actual.logits.cpu(), expected.logits)


# Sums of random floats, by every dot's own order of additions.
FLOAT_CASES = [
    ExitCase(rows=37, hidden_size=768, classes=5, rule="all"),
    ExitCase(rows=17, hidden_size=257, classes=33, rule="all", is_packed=False),
    ExitCase(rows=5, hidden_size=768, classes=1, kind="value", rule="all"),
    ExitCase(rows=5, hidden_size=768, classes=1000, kind="label_set", rule="all"),
]


def packed_lengths(lengths: list[int]) -> Tensor:
    """Return cu_seqlens, [rows + 1] int32."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def check_compaction(
    module: Any,
    lengths: list[int],
    keep: list[int],
    *,
    device: str = "cpu",
    words: int = 1,
    shape: tuple[int, ...] = (),
    dtype: torch.dtype = torch.int64,
) -> None:
    """Hold plan and gather of one module against picking the survivors' tokens one by one."""
    rows, old_tokens = len(lengths), sum(lengths)
    cu_seqlens, row_ids = packed_lengths(lengths), torch.arange(rows) * 3 + 1
    streak, answer = torch.arange(rows).int() - 1, (torch.arange(rows * words) * 5).int().view(rows, words)
    numbers = torch.arange(old_tokens).view(-1, *(1 for _ in shape)).expand(old_tokens, *shape)
    hidden = (numbers % 3 == 0 if dtype == torch.bool else numbers % 251).to(dtype).contiguous()
    survivors = [row for row, kept in enumerate(keep) if kept]
    tokens = [token for row in survivors for token in range(int(cu_seqlens[row]), int(cu_seqlens[row + 1]))]

    flags = torch.tensor(keep, dtype=torch.int8)
    found = module.plan(*(tensor.to(device) for tensor in (flags, cu_seqlens, row_ids, streak, answer)))
    assert isinstance(found, launch.Plan)
    # Both give as many entries as there were rows.
    sizes = {"cu_seqlens": (rows + 1,), "answer": (rows, words), "counts": (3,)}
    assert {n: tuple(t.shape) for n, t in found._asdict().items()} == {n: sizes.get(n, (rows,)) for n in found._fields}

    kept_lengths = [lengths[row] for row in survivors]
    counts = [len(survivors), len(tokens), max(kept_lengths, default=0)]
    assert found.counts.tolist() == counts
    assert found.cu_seqlens[: counts[0] + 1].tolist() == packed_lengths(kept_lengths).tolist()
    for name, old in (("row_ids", row_ids), ("streak", streak), ("answer", answer), ("starts", cu_seqlens)):
        new = getattr(found, name)
        assert new.dtype == old.dtype
        assert new[: counts[0]].tolist() == old[survivors].tolist(), name

    size = dict(zip(("rows", "tokens", "longest"), counts, strict=True))
    moved = module.gather(hidden.to(device), found.starts, found.cu_seqlens, **size)
    assert (moved.dtype, moved.shape) == (dtype, (len(tokens), *shape))
    assert torch.equal(moved.cpu(), hidden[tokens])


@dataclass(frozen=True)
class CompactCase:
    """Lengths in turn, and which rows stay."""

    rows: int
    stay: str = "some"
    lengths: tuple[int, ...] = (3, 1, 7, 2, 5)
    words: int = 1
    shape: tuple[int, ...] = (48,)
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        size = "x".join(map(str, (self.rows, *self.shape)))
        return f"{self.stay}-{size}-{str(self.dtype).removeprefix('torch.')}-{max(self.lengths)}-{self.words}"

    def row_lengths(self) -> list[int]:
        """Return every row's number of tokens."""
        return [self.lengths[row % len(self.lengths)] for row in range(self.rows)]

    def keep(self) -> list[int]:
        """Return every row's keep flag."""
        last = self.rows - 1
        return {
            "none": [0] * self.rows,
            "all": [1] * self.rows,
            "one": [int(row == last) for row in range(self.rows)],
            "some": [int(row * row % 7 < 3) for row in range(self.rows)],
        }[self.stay]


# plan takes 1024 rows a block.
COMPACT_CASES = [
    CompactCase(rows=0),
    *(CompactCase(rows=1, stay=stay, lengths=(1,)) for stay in ("all", "none")),
    *(CompactCase(rows=7, stay=stay) for stay in ("some", "all", "none", "one")),
    *(CompactCase(rows=rows, lengths=(1, 2), shape=()) for rows in (1023, 1024)),
    # The longest row is in the first block, and both have survivors.
    CompactCase(rows=1033, lengths=(2, *[1] * 1032), shape=()),
    CompactCase(rows=2053, lengths=(1,), shape=(), stay="one"),
    CompactCase(rows=37, words=32),
    *(CompactCase(rows=37, shape=shape) for shape in ((1,), (257,), (768,), (2, 3))),
    *(CompactCase(rows=7, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64)),
    CompactCase(rows=7, shape=(), dtype=torch.bool),
    # A run of several blocks beside runs of a part of one, and a row without tokens.
    CompactCase(rows=5, stay="all", lengths=(0, 301, 1, 127, 128)),
]


def check_compact(module: Any, case: CompactCase, device: str) -> None:
    """Hold plan and gather of one module against indexing."""
    check_compaction(
        module,
        case.row_lengths(),
        case.keep(),
        device=device,
        words=case.words,
        shape=case.shape,
        dtype=case.dtype,
    )


def check_shrinking_batch(module: Any, device: str) -> None:
    """Compact one batch down to one row and then none, from the prefixes of plans that the runtime passes on."""
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 1, 7, 2, 5, 11, 1, 4]
    cu_seqlens = packed_lengths(lengths).to(device)
    tokens = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    hidden = torch.tensor(tokens).to(device)
    row_ids, streak = torch.arange(8).to(device), torch.arange(8).int().to(device)
    answer = torch.arange(8).int()[:, None].to(device)
    alive = list(range(8))
    while alive:
        leaver = int(torch.randint(len(alive), (1,), generator=generator))
        keep = torch.tensor([int(place != leaver) for place in range(len(alive))], dtype=torch.int8).to(device)
        found = module.plan(keep, cu_seqlens, row_ids, streak, answer)
        rows, count, longest = found.counts.tolist()
        hidden = module.gather(hidden, found.starts, found.cu_seqlens, rows=rows, tokens=count, longest=longest)
        cu_seqlens, row_ids = found.cu_seqlens[: rows + 1], found.row_ids[:rows]
        streak, answer = found.streak[:rows], found.answer[:rows]
        del alive[leaver]
        assert row_ids.tolist() == streak.tolist() == answer[:, 0].tolist() == alive
        assert hidden.tolist() == [[row, place] for row, place in tokens if row in alive]
