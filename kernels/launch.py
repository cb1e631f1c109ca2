"""What a kernel and its reference share: the plan they exchange, block sizes, and the kernel's launch.

Needs torch alone, so that it imports where Triton is not installed.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# More classes than this do not fit one program's registers.
MAX_CLASSES = 1024
MIN_DOT = 16
GATHER_BYTES = 8192
# Enough for several programs on every multiprocessor; a row's programs take turns along it, so fewer stay correct.
GATHER_PROGRAMS = 16384


class Plan(NamedTuple):
    """Where the survivors of a packed batch go; entries past the counted ones are allocated but hold no meaning."""

    cu_seqlens: Tensor
    """[rows + 1] int32: the survivors' cumulative lengths; the first survivors + 1 entries are valid."""
    row_ids: Tensor
    """[rows] int64: the first `survivors` entries are valid, here and in the tensors below."""
    streak: Tensor
    """[rows] int32."""
    answer: Tensor
    """[rows, words] int32."""
    starts: Tensor
    """[rows] int32: a survivor's first token in the old packed batch."""
    counts: Tensor
    """[3] int32: survivors, their tokens, the longest one's tokens; what the host reads back."""


@dataclass(frozen=True)
class Specialisation:
    """What `triton.compile(ASTSource(kernel, signature, constexprs, attrs), options=options)` needs for one launch."""

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attrs: dict[tuple[int], list[list[Any]]]
    options: dict[str, Any]


_TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
_ALIGNMENT = 16


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel, ready to run."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the device of the tensors among the arguments."""
        first = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(first):  # does nothing for a tensor that is on no GPU
            self.kernel[self.grid](**self.arguments, **self.options)

    def specialisation(self) -> Specialisation:
        """Return what this launch makes Triton compile; the numbers among the arguments are never specialised."""
        signature: dict[str, str] = {}
        constexprs: dict[str, Any] = {}
        attrs: dict[tuple[int], list[list[Any]]] = {}
        for position, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constexprs[parameter.name] = value
            elif isinstance(value, Tensor):
                signature[parameter.name] = "*" + _TYPE_NAMES[value.dtype]
                if value.data_ptr() % _ALIGNMENT == 0 and not parameter.do_not_specialize_on_alignment:
                    attrs[(position,)] = [["tt.divisibility", _ALIGNMENT]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        return Specialisation(self.kernel, signature, constexprs, attrs, self.options)


def exit_step_blocks(hidden_size: int, classes: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """Return the block sizes and compile options of `exit_step`: keyed on what stays while a batch shrinks.

    Raises ValueError if there are more classes than one program can hold.
    """
    if classes > MAX_CLASSES:
        raise ValueError(
            f"weight has {classes} classes; the kernel takes up to {MAX_CLASSES}, "
            "so call pabee_fast.kernels.reference.exit_step"
        )
    block_classes = max(MIN_DOT, next_power_of_2(classes))
    # A weight tile of 16 KiB leaves room for several programs on a multiprocessor; at 128 wide, sm_80 spills.
    fitting = 16384 // (block_classes * dtype.itemsize)
    block_hidden = max(MIN_DOT, min(64, fitting, next_power_of_2(hidden_size)))
    # Tensor cores take 16 rows; float32 goes without them, and spills at 16 rows of 1024 classes.
    block_rows = min(16, 8192 // block_classes) if dtype == torch.float32 else 16
    blocks = {"BLOCK_ROWS": block_rows, "BLOCK_HIDDEN": block_hidden, "BLOCK_CLASSES": block_classes}
    return blocks, {"num_warps": max(4, block_classes // 64), "num_stages": 2}


def plan_blocks() -> tuple[dict[str, int], dict[str, int]]:
    """Return the block size and compile options of `plan`."""
    return {"BLOCK_ROWS": 1024}, {"num_warps": 8, "num_stages": 1}


def gather_blocks(width: int, itemsize: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the block size and compile options of `gather` for tokens of `width` elements of `itemsize` bytes."""
    return {"BLOCK": min(GATHER_BYTES // itemsize, next_power_of_2(width) * 128)}, {"num_warps": 4, "num_stages": 1}


def gather_grid(rows: int, longest: int, width: int, block: int) -> tuple[int, int]:
    """Return the launch grid of `gather`: one program a row, and more along it where rows alone are too few."""
    return rows, max(1, min(-(-longest * width // block), GATHER_PROGRAMS // rows))


def next_power_of_2(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
