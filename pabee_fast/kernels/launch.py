"""What a kernel and its reference share: the plan they exchange, block sizes, and the kernel's launch.

Needs torch alone, so that it imports where Triton is not installed.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import BITS_PER_WORD, memory_words
from .prepared import Constants, launch

# More classes than this do not fit one program's registers.
MAX_CLASSES = 1024
MIN_DOT = 16
# Of a head whose classes are asked one after the other.
FEW_CLASSES = 8
# A program of `add_norm` holds a whole token, 32 numbers to a thread.
MAX_HIDDEN_SIZE = 16384
# Tokens of a row that a mean loads at once.
MEAN_TOKENS = 8
GATHER_BYTES = 8192
# Enough for several programs on every multiprocessor; a row's programs take turns along it, so fewer stay correct.
GATHER_PROGRAMS = 16384


class Plan:
    """Where the survivors of a packed batch go; entries past the counted ones are allocated but hold no meaning.

    Args:
        memory: [4 * rows + 4] int32, in which all but `row_ids` lie one after another: of a wave that nobody has left,
            nothing but the counts is looked at.
        row_ids: [rows] int64: the first `survivors` entries are valid, here and in the tensors below.
    """

    def __init__(self, memory: Tensor, row_ids: Tensor) -> None:
        self.memory, self.row_ids = memory, row_ids

    @classmethod
    def of(
        cls, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, sources: Tensor, starts: Tensor, counts: Tensor
    ) -> "Plan":
        """Return a plan of tensors that lie apart."""
        return cls(torch.cat([cu_seqlens, streak, sources, starts, counts]), row_ids)

    @property
    def counts(self) -> Tensor:
        """[3] int32: survivors, their tokens, the longest one's tokens; what the host reads back."""
        return self.memory[-3:]

    @cached_property
    def _parts(self) -> Sequence[Tensor]:
        rows = len(self.row_ids)
        return self.memory.split_with_sizes((rows + 1, rows, rows, rows, 3))

    @property
    def cu_seqlens(self) -> Tensor:
        """[rows + 1] int32: the survivors' cumulative lengths; the first survivors + 1 entries are valid."""
        return self._parts[0]

    @property
    def streak(self) -> Tensor:
        """[rows] int32."""
        return self._parts[1]

    @property
    def sources(self) -> Tensor:
        """[rows] int32: a survivor's place among the old rows."""
        return self._parts[2]

    @property
    def starts(self) -> Tensor:
        """[rows] int32: a survivor's first token in the old packed batch."""
        return self._parts[3]

    def __iter__(self) -> Iterator[Tensor]:
        """All tensors, in the order of `of`."""
        return iter((self.cu_seqlens, self.row_ids, self.streak, self.sources, self.starts, self.counts))


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
    torch.bool: "i1",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
_ALIGNMENT = 16


class Launch(NamedTuple):
    """One launch of a Triton kernel, ready to run."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Tensors and numbers, in the order of the parameters; the constants follow."""
    constants: Constants

    def run(self) -> None:
        """Launch on the device of the tensors among the arguments; what goes wrong names kernel and specialisation."""
        try:
            launch(*self)
        except Exception as error:
            if hasattr(self.kernel, "params"):  # it was compiled
                made = self.specialisation()
                error.add_note(
                    f"{self.kernel.__name__}, specialised to {made.signature}, {made.constexprs}, {made.options}"
                )
            raise

    def specialisation(self) -> Specialisation:
        """Return what this launch makes Triton compile; the numbers among the arguments are never specialised."""
        signature: dict[str, str] = {}
        constexprs: dict[str, Any] = {}
        attrs: dict[tuple[int], list[list[Any]]] = {}
        values = self.arguments | self.constants.values
        for position, parameter in enumerate(self.kernel.params):
            value = values[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constexprs[parameter.name] = value
            elif isinstance(value, Tensor):
                signature[parameter.name] = "*" + _TYPE_NAMES[value.dtype]
                if value.data_ptr() % _ALIGNMENT == 0 and not parameter.do_not_specialize_on_alignment:
                    attrs[(position,)] = [["tt.divisibility", _ALIGNMENT]]
            elif hasattr(value, "block_shape"):  # a descriptor, whose class is Triton's
                block = ", ".join(map(str, value.block_shape))
                signature[parameter.name] = f"tensordesc<{_TYPE_NAMES[value.base.dtype]}[{block}]>"
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        return Specialisation(self.kernel, signature, constexprs, attrs, self.constants.options)


def constants_of(warps: int, stages: int, **values: Any) -> Constants:
    # Fused multiply-adds are asked for, since Triton's default has changed.
    return Constants(values, {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True})


@functools.cache
def exit_step_constants(
    hidden_size: int, classes: int, dtype: torch.dtype, kind: str, rule: str, pooling: str | None
) -> Constants:
    """Return what `exit_step` is compiled for: keyed on what stays while a batch shrinks.

    Raises ValueError if there are more classes than one program can hold.
    """
    if classes > MAX_CLASSES:
        raise ValueError(
            f"weight has {classes} classes; the kernel takes up to {MAX_CLASSES}, "
            "so call pabee_fast.kernels.reference.exit_step"
        )
    shared: dict[str, Any] = dict(
        HIDDEN_SIZE=hidden_size,
        CLASSES=classes,
        WORDS=memory_words(kind, rule, classes),
        KIND=kind,
        RULE=rule,
        POOLING=pooling or "first",  # a pooled feature is a row of one token
    )
    if classes <= FEW_CLASSES and kind != "label_set":
        block_hidden = min(2048 // dtype.itemsize, next_power_of_2(hidden_size))
        sizes = {"BLOCK_HIDDEN": block_hidden, "BLOCK_CLASSES": next_power_of_2(classes)}
        return constants_of(1, 1, **shared, IS_FEW=True, BLOCK_ROWS=2, **sizes)
    block_classes = max(BITS_PER_WORD if kind == "label_set" else MIN_DOT, next_power_of_2(classes))
    # A weight tile of 16 KiB leaves room for several programs on a multiprocessor; at 128 wide, sm_80 spills.
    fitting = 16384 // (block_classes * dtype.itemsize)
    if kind == "label_set" and pooling == "last":
        # A set's words lie beside the tile: with 64 classes, 32 wide, a last token spills on sm_100. Pooled features
        # and first tokens do not, and spill in narrower tiles (bfloat16, 32 wide: 9 accesses on sm_80).
        fitting = min(fitting, 1024 // block_classes)
    block_hidden = max(MIN_DOT, min(64, fitting, next_power_of_2(hidden_size)))
    # Tensor cores take 16 rows; what else a program holds of them decides how many of 1024 classes spill.
    fitting = {"divergence": 4096, "vote": 8192}.get(rule, 8192 if dtype == torch.float32 else 16384)
    return constants_of(
        max(4, block_classes // 64),
        2,
        **shared,
        IS_FEW=False,
        BLOCK_ROWS=min(16, fitting // block_classes),
        BLOCK_HIDDEN=block_hidden,
        BLOCK_CLASSES=block_classes,
    )


@functools.cache
def pool_constants(hidden_size: int, dtype: torch.dtype, pooling: str) -> Constants:
    """Return what `pool` is compiled for."""
    # One warp for a mean: a thread then adds up columns of its own, and exchanges nothing with others.
    warps, rows, tokens = (1, 1, MEAN_TOKENS) if pooling == "mean" else (4, 8, 1)
    return constants_of(
        warps,
        1,
        HIDDEN_SIZE=hidden_size,
        POOLING=pooling,
        BLOCK_ROWS=rows,
        BLOCK_TOKENS=tokens,
        BLOCK_HIDDEN=min(next_power_of_2(hidden_size), 512 // dtype.itemsize),
    )


PLAN_CONSTANTS = constants_of(8, 1, BLOCK_ROWS=1024)
"""What `plan` is compiled for."""


@functools.cache
def gather_constants(width: int, itemsize: int, words: int) -> Constants:
    """Return what `gather` is compiled for: tokens of `width` elements of `itemsize` bytes."""
    block = min(GATHER_BYTES // itemsize, next_power_of_2(width) * 128)
    return constants_of(4, 1, WIDTH=width, WORDS=words, BLOCK=block, BLOCK_WORDS=next_power_of_2(words))


def gather_grid(rows: int, longest: int, width: int, block: int) -> tuple[int, int]:
    """Return the launch grid of `gather`: one program a row, and more along it where rows alone are too few."""
    return rows, max(1, min(-(-longest * width // block), GATHER_PROGRAMS // rows))


@functools.cache
def add_norm_constants(hidden_size: int) -> Constants:
    """Return what `add_norm` is compiled for: 32 numbers to a thread, at least four warps.

    Raises ValueError if a token is wider than one program can hold.
    """
    if hidden_size > MAX_HIDDEN_SIZE:
        raise ValueError(
            f"product has tokens of {hidden_size} numbers; the kernel takes up to {MAX_HIDDEN_SIZE}, "
            "so call pabee_fast.kernels.reference.add_norm"
        )
    block_hidden = next_power_of_2(hidden_size)
    warps = max(4, block_hidden // 1024)
    block_tokens = min(32, warps * 1024 // block_hidden)
    return constants_of(warps, 1, HIDDEN_SIZE=hidden_size, BLOCK_TOKENS=block_tokens, BLOCK_HIDDEN=block_hidden)


@functools.cache
def bias_act_constants(width: int, activation: str) -> Constants:
    """Return what `bias_act` is compiled for: 32 numbers to a thread, so that enough loads are under way to fill the
    memory's latency."""
    block = min(1024, next_power_of_2(width))
    return constants_of(4, 1, WIDTH=width, ACTIVATION=activation, BLOCK_TOKENS=4096 // block, BLOCK_WIDTH=block)


@functools.cache
def linear_gelu_constants(width: int, hidden_size: int, dtype: torch.dtype) -> Constants:
    """Return what `linear_gelu` is compiled for. In half precision two programs of four warps fill a multiprocessor of
    sm_90, with 112 KiB of shared memory each; float32, whose operands stay in registers, is for comparisons."""
    block, hidden, stages = (32, 32, 1) if dtype == torch.float32 else (128, 64, 3)
    return constants_of(
        4,
        stages,
        WIDTH=width,
        HIDDEN_SIZE=hidden_size,
        BLOCK_TOKENS=block,
        BLOCK_WIDTH=block,
        BLOCK_HIDDEN=hidden,
        GROUP=8,
    )


def next_power_of_2(number: int) -> int:
    """Return the least power of two that is not below `number`; 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()
