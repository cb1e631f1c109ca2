"""Cases that hold attention against its formula in float64; the reference, the interpreter and a GPU run the same ones.

Sizes are chosen: 0 rows (nothing to launch), 1 row, 1 token, primes and the neighbours of powers of two (no block
divides them), head sizes of 1 (all padding), 20 and 24 (padded to 32), and more than one block of keys.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.kernels.checks import MAX_SHORT_ROW
from tests.tolerances import assert_close


@dataclass(frozen=True)
class AttentionCase:
    """Rows of the given lengths, and what their queries see."""

    lengths: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int | None = None
    scaling: float | None = None
    is_causal: bool = False
    window: int | None = None
    hidden: str | None = None
    """Which tokens nobody attends to: the "first" of every second row, "every" one of every second row, or "some"."""
    has_holes: bool = False
    """Whether the padded layout had hidden tokens between the packed ones."""
    is_joined: bool = False
    """Whether query, key and value are views of one projection, [tokens, heads in all, head_dim]."""
    has_biases: bool = False
    """Whether queries and values, of short rows alone, have biases yet to be added."""

    def __str__(self) -> str:
        longest = max(self.lengths, default=0)
        words = [
            f"{len(self.lengths)}x{longest}", f"{self.heads}-{self.kv_heads}-{self.head_dim}-{self.value_dim or ''}",
            "causal" if self.is_causal else "", f"window{self.window}" if self.window else "", self.hidden or "",
            "holes" if self.has_holes else "", "joined" if self.is_joined else "",
            "biases" if self.has_biases else "",
        ]  # fmt: skip
        return "-".join(word for word in words if word)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def cu_seqlens(self) -> Tensor:
        """Return [rows + 1] int32."""
        return torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32)

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """Return query, key and value."""
        generator = torch.Generator().manual_seed(0)
        heads = [self.heads, self.kv_heads, self.kv_heads]
        sizes = [self.head_dim, self.head_dim, self.value_dim or self.head_dim]
        made = [
            torch.randn((self.tokens, number, size), generator=generator).to(device, dtype)
            for number, size in zip(heads, sizes, strict=True)
        ]
        return list(torch.cat(made, dim=1).split(heads, dim=1)) if self.is_joined else made

    def key_mask(self) -> Tensor | None:
        """Return [tokens] bool, or None."""
        if self.hidden is None:
            return None
        if self.hidden == "some":
            return torch.rand(self.tokens, generator=torch.Generator().manual_seed(1)) < 0.6
        mask = torch.ones(self.tokens, dtype=torch.bool)
        for start, end in list(itertools.pairwise(self.cu_seqlens().tolist()))[::2]:
            mask[start : start + 1 if self.hidden == "first" else end] = False
        return mask

    def positions(self) -> Tensor | None:
        """Return [tokens] int32, ascending within a row, or None."""
        if not self.has_holes:
            return None
        return torch.randint(1, 4, (self.tokens,), generator=torch.Generator().manual_seed(2)).cumsum(0).int()

    def biases(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """Return the biases of queries, keys and values by those words; nothing where there are none."""
        if not self.has_biases:
            return {}
        generator, sizes = torch.Generator().manual_seed(3), [self.head_dim, self.head_dim]
        shapes = zip((self.heads, self.kv_heads, self.kv_heads), [*sizes, self.value_dim or self.head_dim], strict=True)
        made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
        return dict(zip(("query", "key", "value"), made, strict=True))

    def options(self, device: str = "cpu") -> dict[str, Any]:
        """Return the keyword arguments."""
        marks = {"key_mask": self.key_mask(), "positions": self.positions()}
        return {
            "scaling": self.scaling,
            "is_causal": self.is_causal,
            "window": self.window,
            **{name: None if mark is None else mark.to(device) for name, mark in marks.items()},
        }


def softmax_maths(case: AttentionCase, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(scaling * q k^T) v of every row and head by itself, as the formula says, in float64."""
    group = case.heads // case.kv_heads
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    scaling = 1 / math.sqrt(case.head_dim) if case.scaling is None else case.scaling
    out = torch.zeros(case.tokens, case.heads, value.shape[2], dtype=torch.float64)
    mask, positions = case.key_mask(), case.positions()
    for start, end in itertools.pairwise(case.cu_seqlens().tolist()):
        row = slice(start, end)
        q, k, v = (tensor[row].double() for tensor in (query, key, value))
        place = torch.arange(end - start) if positions is None else positions[row]
        distance = place[:, None] - place[None, :]  # [queries, keys]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if case.is_causal:
            seen &= distance >= 0
        if case.window is not None:
            seen &= distance.abs() < case.window
        if mask is not None:
            seen &= mask[row]
        weights = torch.einsum("qhd,khd->hqk", q, k).mul(scaling).exp() * seen
        total = weights.sum(-1, keepdim=True)
        out[row] = torch.einsum("hqk,khd->qhd", weights / total.where(total > 0, 1), v)
    return out


LENGTHS = (7, 1, 13, 13, 2, 31, 5)
# Longer than a block of queries and of keys, beside short rows.
LONG = (3, 67, 64, 1, 37)
ATTENTION_CASES = [
    AttentionCase(lengths=()),
    AttentionCase(lengths=(1,)),
    AttentionCase(lengths=(13,)),
    AttentionCase(lengths=(0, 5, 0, 0, 3, 0)),
    AttentionCase(lengths=(1,) * 19),
    AttentionCase(lengths=LENGTHS),
    AttentionCase(lengths=LENGTHS, scaling=0.3),
    *(AttentionCase(lengths=LENGTHS, head_dim=head_dim) for head_dim in (1, 20, 24, 64)),
    AttentionCase(lengths=(5, 17), head_dim=128),
    AttentionCase(lengths=(5, 17), head_dim=256),
    AttentionCase(lengths=LENGTHS, head_dim=24, value_dim=40),
    AttentionCase(lengths=LENGTHS, heads=3, kv_heads=1),
    AttentionCase(lengths=LENGTHS, heads=6, kv_heads=2, head_dim=20, is_causal=True),
    AttentionCase(lengths=LONG),
    AttentionCase(lengths=LONG, is_causal=True),
    *(AttentionCase(lengths=LONG, window=window) for window in (1, 2, 33, 500)),
    *(AttentionCase(lengths=LONG, window=window, is_causal=True) for window in (1, 2, 33, 500)),
    # The window is as wide as the rows, and a little less and more.
    *(AttentionCase(lengths=(31, 32, 33), window=32, is_causal=is_causal) for is_causal in (False, True)),
    AttentionCase(lengths=LENGTHS, hidden="first"),
    AttentionCase(lengths=LENGTHS, hidden="first", is_causal=True),
    AttentionCase(lengths=LENGTHS, hidden="every"),
    AttentionCase(lengths=LONG, hidden="some", window=4),
    AttentionCase(lengths=LONG, hidden="some", window=4, is_causal=True),
    AttentionCase(lengths=LONG, has_holes=True, window=40),
    AttentionCase(lengths=LONG, has_holes=True, window=40, is_causal=True, hidden="first"),
    AttentionCase(lengths=LENGTHS, has_holes=True),
    AttentionCase(lengths=LENGTHS, is_joined=True),
    AttentionCase(lengths=LENGTHS, heads=4, head_dim=20, is_joined=True, is_causal=True, window=5),
]


# Tiles of 32 tokens hold these, and of 64 those: rows that fill one, that do not fit beside another, and that are more
# than a program takes at a time.
NARROW = (32, 1, 31, 2, 30, 16, 0, 17, *(1,) * 40, 32, 5)
WIDE = (64, 1, 63, 64, 2, 62, 33, 0, 32, 0, 40, 30, 5, 5, 5, 64, 64, 7)
SHORT_CASES = [
    *(
        case
        for case in ATTENTION_CASES
        if max(case.lengths, default=0) <= MAX_SHORT_ROW and max(case.head_dim, case.value_dim or 0) <= 64
    ),
    *(AttentionCase(lengths=lengths, heads=1, kv_heads=1, head_dim=32) for lengths in (NARROW, WIDE)),
    AttentionCase(lengths=WIDE, head_dim=64, is_joined=True),
    AttentionCase(lengths=WIDE, is_causal=True),
    *(AttentionCase(lengths=WIDE, window=window, is_causal=window == 7) for window in (1, 7, 40, 500)),
    *(AttentionCase(lengths=WIDE, hidden=hidden, heads=4) for hidden in ("first", "every", "some")),
    AttentionCase(lengths=WIDE, hidden="some", window=9, has_holes=True),
    AttentionCase(lengths=NARROW, hidden="first", window=9, has_holes=True, is_causal=True),
    AttentionCase(lengths=WIDE, head_dim=64, is_joined=True, has_biases=True),
    AttentionCase(lengths=NARROW, head_dim=20, value_dim=24, heads=4, hidden="every", has_biases=True),
    AttentionCase(lengths=WIDE, heads=6, head_dim=32, is_causal=True, hidden="some", has_biases=True),
]


def short(attention: Callable[..., Tensor], lengths: Sequence[int]) -> Callable[..., Tensor]:
    """Return an attention for short rows that knows the longest of them."""
    return functools.partial(attention, longest=max(lengths, default=0))


def check_attention(attention: Callable[..., Tensor], case: AttentionCase, dtype: torch.dtype, device: str) -> None:
    """Hold attention against its formula, on the numbers as `dtype` holds them."""
    tensors, biases = case.tensors(dtype, device), case.biases(dtype, device)
    given = {f"{name}_bias": bias for name, bias in biases.items() if name != "key"}
    got = attention(*tensors, case.cu_seqlens().to(device), **case.options(device), **given)
    assert (got.dtype, got.device.type, got.is_contiguous()) == (dtype, device, True)
    tensors = [tensor.cpu() for tensor in tensors]
    if biases:  # keys with theirs: it must make no difference
        tensors = [tensor.double() + bias.cpu() for tensor, bias in zip(tensors, biases.values(), strict=True)]
    assert_close(got.cpu().double(), softmax_maths(case, *tensors), dtype)


def check_neighbours_do_not_matter(
    attention: Callable[..., Tensor],
    lengths: list[int],
    place: int,
    *,
    is_causal: bool,
    window: int | None,
    device: str = "cpu",
) -> None:
    """Hold a row among others, some of them not finite, against the row alone."""
    case = AttentionCase(tuple(lengths), is_causal=is_causal, window=window)
    ends = case.cu_seqlens().to(device)
    row = slice(int(ends[place]), int(ends[place + 1]))
    tensors = case.tensors(torch.float32, device)
    own = [tensor[row].clone() for tensor in tensors]
    for number, tensor in enumerate(tensors):
        tensor[number::5] = float("nan")
        tensor[number + 1 :: 7] = float("inf")
        tensor[row] = own[number]
    among = attention(*tensors, ends, **case.options(device))[row]
    assert among.isfinite().all()
    alone = attention(*own, torch.tensor([0, lengths[place]], dtype=torch.int32, device=device), **case.options(device))
    assert_close(among, alone)


def check_values_that_are_not_finite(attention: Callable[..., Tensor], device: str = "cpu") -> None:
    """Hold each query that sees a value which is not finite to NaN, and the others to the formula."""
    case = AttentionCase(lengths=(5, 9, 3, 20), is_causal=True)
    query, key, value = case.tensors(torch.float32, device)
    value[7, 0, 3], value[16, 1, 0], value[30, 0, 5] = math.nan, math.inf, -math.inf
    got = attention(query, key, value, case.cu_seqlens().to(device), **case.options(device)).cpu()
    expected = softmax_maths(case, query.cpu(), key.cpu(), value.cpu().nan_to_num(0.0, 0.0, 0.0))
    for first, last, head in ((7, 14, 0), (16, 17, 1), (30, 37, 0)):
        expected[first:last, head] = math.nan
    assert_close(got.double(), expected)
