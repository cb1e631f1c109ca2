"""What kernels of attention share with their references, beside `launch`: block sizes, and how many tiles they have."""

import functools
from typing import Any, NamedTuple

import torch

from .checks import MAX_SHORT_ROW
from .launch import MIN_DOT, constants_of, next_power_of_2
from .prepared import Constants

# Larger heads leave a program no registers for a block of queries.
MAX_HEAD_DIM = 256

# Every published DeBERTa has heads of 64; of 128, blocks of any size spill on one target or another.
MAX_PLACE_HEAD = 64

# Larger heads leave a tile of short rows too few registers; float32 products keep their operands in them.
MAX_SHORT_HEAD = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}

# Of `short_attention`, numbers of queries (tokens times heads): in spans of four tiles 600 programs, as many as an H200
# runs at once.
FEW_QUERIES = 600 * 4 * MAX_SHORT_ROW

# Queries, keys and warps of a program of `attention`, by the size of a head.
_HALF_ATTENTION = {64: (64, 32, 4), 128: (64, 32, 8), 256: (32, 32, 4)}
_FLOAT32_ATTENTION = {64: (32, 32, 4), 128: (32, 32, 8), 256: (16, 16, 8)}


class Heads(NamedTuple):
    """What a kernel of attention is compiled for, beside its blocks."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    is_causal: bool
    has_window: bool
    stride_unit: int

    def constants(self) -> dict[str, Any]:
        """Return the kernels' constants of that."""
        return dict(
            HEADS=self.heads,
            GROUP=self.heads // self.kv_heads,
            HEAD_DIM=self.head_dim,
            VALUE_DIM=self.value_dim,
            IS_CAUSAL=self.is_causal,
            HAS_WINDOW=self.has_window,
            STRIDE_UNIT=self.stride_unit,
        )

    def blocks(self) -> dict[str, int]:
        """Return the blocks of numbers that hold a head."""
        head, value = (max(MIN_DOT, next_power_of_2(size)) for size in (self.head_dim, self.value_dim))
        return {"BLOCK_HEAD": head, "BLOCK_VALUE": value}


@functools.cache
def attention_constants(heads: Heads, is_interpreted: bool) -> Constants:
    """Return what `attention` is compiled for: keyed on heads, which no batch changes.

    The largest blocks that spill nowhere, in 54 KiB of shared memory; every launch of float32 products is pure
    multiply-adds, whose operands stay in registers, so that its blocks are smaller.
    """
    blocks = heads.blocks()
    by_size = _FLOAT32_ATTENTION if heads.dtype == torch.float32 else _HALF_ATTENTION
    queries, keys, warps = by_size[max(64, *blocks.values())]
    sizes = {"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys, **blocks}
    return constants_of(warps, 2, **heads.constants(), **sizes, IS_INTERPRETED=is_interpreted)


class PlaceHeads(NamedTuple):
    """What `disentangled_attention` is compiled for, beside its blocks."""

    heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    stride_unit: int


@functools.cache
def disentangled_attention_constants(heads: PlaceHeads, is_interpreted: bool) -> Constants:
    """Return what `disentangled_attention` is compiled for: the largest blocks that spill nowhere."""
    head, value = (max(MIN_DOT, next_power_of_2(size)) for size in (heads.head_dim, heads.value_dim))
    block = 16 if heads.dtype == torch.float32 else 32
    return constants_of(
        4,
        2,
        HEADS=heads.heads,
        HEAD_DIM=heads.head_dim,
        VALUE_DIM=heads.value_dim,
        STRIDE_UNIT=heads.stride_unit,
        BLOCK_QUERIES=block,
        BLOCK_KEYS=block,
        BLOCK_HEAD=head,
        BLOCK_VALUE=value,
        IS_INTERPRETED=is_interpreted,
    )


def attention_tiles(rows: int, tokens: int, block_queries: int) -> int:
    """Return how many tiles of queries `attention` has to a head: enough for rows of any lengths, by rows and tokens
    alone, since the host knows no more; hardly one to a row is empty, and none of them because another row is long."""
    return tokens // block_queries + rows


@functools.cache
def short_attention_constants(heads: Heads, is_tight: bool, is_few: bool = False) -> Constants:
    """Return what `short_attention` is compiled for: keyed on heads, which no batch changes; `is_tight` where the
    device is Hopper and nothing hides a key, `is_few` where tokens are too few to keep a GPU busy by spans of four
    tiles: a program takes the longer the more tiles it has (8 rows on an H200: four 14.7 us).

    One tile for all: one of half as many tokens takes 0.7 of the time (bench/results/nvidia-h200/profiles.md) and
    holds one row where this one holds two or three. A span of four tiles ends with one that is not full, so that of
    sst2's lengths 26 % of the places are empty; in a list of tiles without spans 22 % were, for which each wave would
    need a launch of its own.
    """
    is_half, blocks = heads.dtype != torch.float32, heads.blocks()
    sizes = {"SPAN": (1 if is_few else 4) * MAX_SHORT_ROW, "BLOCK_TOKENS": MAX_SHORT_ROW, **blocks}
    made = constants_of(4 if is_half else 8, 1, **heads.constants(), **sizes)
    if is_tight and is_half and max(blocks.values()) <= 64:
        # Registers of a thread: so a multiprocessor holds five programs, not four, and an H200 takes 253 us, not 273.
        # Elsewhere they would spill.
        made.options["maxnreg"] = 96
    return made


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Return whether a device is an NVIDIA GPU of compute capability 9."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
