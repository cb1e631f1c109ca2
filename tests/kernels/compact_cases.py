"""Cases that hold plan and gather against indexing; the interpreter and a GPU run the same ones.

Sizes are chosen: 0 rows (nothing to launch), 1 row, 1 token, primes (no block size divides them), the block size of
plan and its neighbours, widths of 1 (all padding), 257 (a prime: never aligned) and 768 (BERT-base).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.kernels import launch


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
    streak, memory = torch.arange(rows).int() - 1, (torch.arange(rows * words) * 5).int().view(rows, words)
    numbers = torch.arange(old_tokens).view(-1, *(1 for _ in shape)).expand(old_tokens, *shape)
    hidden = (numbers % 3 == 0 if dtype == torch.bool else numbers % 251).to(dtype).contiguous()
    survivors = [row for row, kept in enumerate(keep) if kept]
    tokens = [token for row in survivors for token in range(int(cu_seqlens[row]), int(cu_seqlens[row + 1]))]

    flags = torch.tensor(keep, dtype=torch.int8)
    found = module.plan(*(tensor.to(device) for tensor in (flags, cu_seqlens, row_ids, streak)))
    assert isinstance(found, launch.Plan)
    # Both give as many entries as there were rows.
    assert [len(entries) for entries in found] == [rows + 1, rows, rows, rows, rows, 3]

    kept_lengths = [lengths[row] for row in survivors]
    counts = [len(survivors), len(tokens), max(kept_lengths, default=0)]
    assert found.counts.tolist() == counts
    assert found.cu_seqlens[: counts[0] + 1].tolist() == packed_lengths(kept_lengths).tolist()
    places = torch.arange(rows).int()
    for name, old in (("row_ids", row_ids), ("streak", streak), ("sources", places), ("starts", cu_seqlens)):
        new = getattr(found, name)
        assert new.dtype == old.dtype
        assert new[: counts[0]].tolist() == old[survivors].tolist(), name

    size = dict(zip(("rows", "tokens", "longest"), counts, strict=True))
    moved, remembered = module.gather(
        hidden.to(device), found.starts, found.cu_seqlens, **size, memory=memory.to(device), sources=found.sources
    )
    assert (moved.dtype, moved.shape) == (dtype, (len(tokens), *shape))
    assert torch.equal(moved.cpu(), hidden[tokens])
    assert torch.equal(remembered.cpu(), memory[survivors])
    alone, nothing = module.gather(hidden.to(device), found.starts, found.cu_seqlens, **size)
    assert nothing is None
    assert torch.equal(alone, moved)


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
    *(CompactCase(rows=37, words=words) for words in (0, 3, 32, 1000)),
    # Rows without tokens keep their memory.
    CompactCase(rows=5, lengths=(0,), words=3),
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
    memory = torch.arange(8).int()[:, None].to(device)
    alive = list(range(8))
    while alive:
        leaver = int(torch.randint(len(alive), (1,), generator=generator))
        keep = torch.tensor([int(place != leaver) for place in range(len(alive))], dtype=torch.int8).to(device)
        found = module.plan(keep, cu_seqlens, row_ids, streak)
        rows, count, longest = found.counts.tolist()
        hidden, memory = module.gather(
            hidden, found.starts, found.cu_seqlens, rows=rows, tokens=count, longest=longest, memory=memory,
            sources=found.sources,
        )  # fmt: skip
        cu_seqlens, row_ids = found.cu_seqlens[: rows + 1], found.row_ids[:rows]
        streak = found.streak[:rows]
        del alive[leaver]
        assert row_ids.tolist() == streak.tolist() == memory[:, 0].tolist() == alive
        assert hidden.tolist() == [[row, place] for row, place in tokens if row in alive]
