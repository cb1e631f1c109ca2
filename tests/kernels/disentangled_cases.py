"""Cases that hold disentangled attention against its formula in float64; the reference, the interpreter and a GPU run
the same ones. Sizes as in `attention_cases`."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.kernels.launch_attention import MAX_PLACE_HEAD
from tests.kernels.attention_cases import LENGTHS, LONG, AttentionCase
from tests.tolerances import assert_close

TABLES = ("place_keys", "place_queries")


@dataclass(frozen=True)
class DisentangledCase:
    """Rows of the given lengths, and what their tokens meet of places."""

    lengths: tuple[int, ...]
    tables: tuple[str, ...] = TABLES
    heads: int = 2
    head_dim: int = 16
    scaling: float | None = None
    hidden: str | None = None
    is_joined: bool = False
    spare: int = 0
    """Lines of the tables to each side that no row reaches."""

    def __str__(self) -> str:
        words = [str(self.of_rows()), *self.tables, f"spare{self.spare}" if self.spare else ""]
        return "-".join(word for word in words if word)

    def of_rows(self) -> AttentionCase:
        """The case of attention by content alone."""
        return AttentionCase(
            self.lengths, self.heads, self.heads, self.head_dim, hidden=self.hidden, is_joined=self.is_joined
        )

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    def arguments(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """Return everything that attention is given."""
        rows, generator = self.of_rows(), torch.Generator().manual_seed(3)
        query, key, value = rows.tensors(dtype, device)
        size = (max(1, 2 * self.longest - 1) + 2 * self.spare, self.heads, self.head_dim)
        tables = {name: torch.randn(size, generator=generator).to(device, dtype) for name in self.tables}
        return {
            "query": query,
            "key": key,
            "value": value,
            "cu_seqlens": rows.cu_seqlens().to(device),
            "longest": self.longest,
            "scaling": self.scaling,
            "key_mask": rows.options(device)["key_mask"],
            **tables,
        }


def formula(case: DisentangledCase, arguments: dict[str, Any]) -> Tensor:
    """Return what the formula says of every row and pair of places by itself, in float64."""
    query, key, value = (arguments[name].cpu().double() for name in ("query", "key", "value"))
    tables = {name: arguments[name].cpu().double() for name in case.tables}
    scaling = 1 / math.sqrt(case.head_dim) if case.scaling is None else case.scaling
    mask = case.of_rows().key_mask()
    out = torch.zeros_like(value)
    for start, end in itertools.pairwise(case.of_rows().cu_seqlens().tolist()):
        row, length = slice(start, end), end - start
        scores = torch.einsum("qhd,khd->hqk", query[row], key[row])
        for i, j in itertools.product(range(length), repeat=2):
            if "place_keys" in tables:
                table = tables["place_keys"]
                scores[:, i, j] += (query[start + i] * table[len(table) // 2 + j - i]).sum(-1)
            if "place_queries" in tables:
                table = tables["place_queries"]
                scores[:, i, j] += (key[start + j] * table[len(table) // 2 + i - j]).sum(-1)
        scores *= scaling
        if mask is not None:
            pairs = mask[row, None] & mask[None, row]
            scores = scores.masked_fill(~pairs, torch.finfo(scores.dtype).min)
        out[row] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[row])
    return out


DISENTANGLED_CASES = [
    DisentangledCase(lengths=()),
    DisentangledCase(lengths=(1,)),
    DisentangledCase(lengths=(13,)),
    DisentangledCase(lengths=(0, 5, 0, 0, 3, 0)),
    DisentangledCase(lengths=(1,) * 19),
    *(DisentangledCase(lengths=LENGTHS, tables=tables) for tables in ((), TABLES[:1], TABLES[1:], TABLES)),
    DisentangledCase(lengths=LENGTHS, scaling=0.3, spare=5),
    *(DisentangledCase(lengths=LENGTHS, head_dim=head_dim) for head_dim in (1, 20, 64)),
    DisentangledCase(lengths=(5, 17), head_dim=128),
    DisentangledCase(lengths=LONG, spare=1),
    *(DisentangledCase(lengths=LENGTHS, hidden=hidden) for hidden in ("first", "every", "some")),
    *(DisentangledCase(lengths=LONG, hidden="some", tables=tables) for tables in ((), TABLES)),
    DisentangledCase(lengths=LENGTHS, heads=3, head_dim=20, is_joined=True),
]
KERNEL_CASES = [case for case in DISENTANGLED_CASES if case.head_dim <= MAX_PLACE_HEAD]


def check_disentangled(
    attention: Callable[..., Tensor], case: DisentangledCase, dtype: torch.dtype, device: str
) -> None:
    """Hold attention against its formula, on the numbers as `dtype` holds them."""
    arguments = case.arguments(dtype, device)
    got = attention(**arguments)
    assert (got.dtype, got.device.type, got.is_contiguous()) == (dtype, device, True)
    assert_close(got.cpu().double(), formula(case, arguments), dtype)


def check_neighbours(attention: Callable[..., Tensor], lengths: list[int], place: int, device: str = "cpu") -> None:
    """Hold a row among others, some of them not finite, against the row alone."""
    case = DisentangledCase(tuple(lengths))
    arguments = case.arguments(torch.float32, device)
    ends = arguments["cu_seqlens"].tolist()
    row = slice(ends[place], ends[place + 1])
    names = ("query", "key", "value")
    own = {name: arguments[name][row].clone() for name in names}
    for number, name in enumerate(names):
        arguments[name][number::5] = float("nan")
        arguments[name][number + 1 :: 7] = float("inf")
        arguments[name][row] = own[name]
    among = attention(**arguments)[row]
    assert among.isfinite().all()
    ends = torch.tensor([0, lengths[place]], dtype=torch.int32, device=device)
    assert_close(among, attention(**arguments | own | {"cu_seqlens": ends}))
