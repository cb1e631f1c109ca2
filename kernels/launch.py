"""What a kernel and its reference share: the plan they exchange, the checks before a call, and the kernel's launch.

Needs torch alone, so that it imports where Triton is not installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ("label", "value", "label_set")
RULES = ("streak", "given", "all")
FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS_PER_WORD = 32

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


def answer_words(kind: str, classes: int) -> int:
    """Return how many int32 words one row's answer takes.

    Raises ValueError for an unknown kind.
    """
    _check_choice("kind", kind, KINDS)
    return -(-classes // BITS_PER_WORD) if kind == "label_set" else 1


def check_exit_step(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    streak: Tensor,
    answer: Tensor,
    row_ids: Tensor,
    logits: Tensor,
    exit_layers: Tensor,
    *,
    starts: Tensor | None,
    layer: int,
    kind: str,
    rule: str,
    patience: int,
    threshold: float,
    exit_at: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `exit_step` can take them all."""
    _check_choice("rule", rule, RULES)
    _check_ndim("features", features, "lines", "hidden_size")
    _check_ndim("weight", weight, "classes", "hidden_size")
    _check_ndim("keep", keep, "rows")
    _check_ndim("logits", logits, "results", "classes")
    device = features.device
    hidden_size, classes, rows, results = features.shape[1], weight.shape[0], keep.shape[0], logits.shape[0]
    if features.dtype not in FEATURE_DTYPES:
        names = ", ".join(map(str, FEATURE_DTYPES))
        raise ValueError(f"features is {features.dtype}; convert it to one of {names}")
    if classes == 0 or hidden_size == 0:
        raise ValueError(f"weight is {list(weight.shape)}; give the head at least one class and one input")
    lines = features.shape[0] if starts is not None else rows
    _check("features", features, {"lines" if starts is not None else "rows": lines, "hidden_size": hidden_size})
    _check("weight", weight, {"classes": classes, "hidden_size": hidden_size}, features.dtype, device)
    if bias is not None:
        _check("bias", bias, {"classes": classes}, features.dtype, device)
    _check("keep", keep, {"rows": rows}, torch.int8, device)
    _check("streak", streak, {"rows": rows}, torch.int32, device)
    _check("answer", answer, {"rows": rows, "words": answer_words(kind, classes)}, torch.int32, device)
    _check("row_ids", row_ids, {"rows": rows}, torch.int64, device)
    _check("logits", logits, {"results": results, "classes": classes}, torch.float32, device)
    _check("exit_layers", exit_layers, {"results": results}, torch.int64, device)
    if starts is not None:
        _check("starts", starts, {"rows": rows}, torch.int32, device)
    if layer < 1:
        raise ValueError(f"layer is {layer}; layers are counted from 1")
    if kind == "value":
        if classes != 1:
            raise ValueError(f"kind is 'value' and weight has {classes} classes; give a head with one output")
        if rule == "streak" and not threshold > 0:
            raise ValueError(f"threshold is {threshold}; kind 'value' by rule 'streak' needs one above 0")
    if rule == "streak" and patience < 1:
        raise ValueError(f"patience is {patience}; rule 'streak' needs at least 1")
    if (exit_at is not None) != (rule == "given"):
        given = "None" if exit_at is None else "a tensor"
        raise ValueError(f"exit_at is {given} and rule is {rule!r}; pass exit_at with rule 'given' and only then")
    if exit_at is not None:
        _check("exit_at", exit_at, {"results": results}, torch.int64, device)


def check_plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, answer: Tensor) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `plan` can take them all."""
    _check_ndim("keep", keep, "rows")
    _check_ndim("answer", answer, "rows", "words")
    rows, device = keep.shape[0], keep.device
    _check("keep", keep, {"rows": rows}, torch.int8, device)
    _check("cu_seqlens", cu_seqlens, {"rows + 1": rows + 1}, torch.int32, device)
    _check("row_ids", row_ids, {"rows": rows}, torch.int64, device)
    _check("streak", streak, {"rows": rows}, torch.int32, device)
    _check("answer", answer, {"rows": rows, "words": answer.shape[1]}, torch.int32, device)


def check_gather(hidden: Tensor, starts: Tensor, cu_seqlens: Tensor, *, rows: int, tokens: int, longest: int) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `gather` can take them all."""
    if hidden.ndim == 0:
        raise ValueError("hidden has no dimensions; its first one must count tokens")
    if not hidden.is_contiguous():
        raise ValueError("hidden is not contiguous; make it so where it is allocated")
    _check_ndim("starts", starts, "rows")
    _check_ndim("cu_seqlens", cu_seqlens, "rows + 1")
    _check("starts", starts, {"rows": starts.shape[0]}, torch.int32, hidden.device)
    _check("cu_seqlens", cu_seqlens, {"rows + 1": cu_seqlens.shape[0]}, torch.int32, hidden.device)
    if not 0 <= rows <= starts.shape[0] or rows + 1 > cu_seqlens.shape[0]:
        raise ValueError(
            f"rows is {rows}, starts has {starts.shape[0]} entries and cu_seqlens {cu_seqlens.shape[0]}; "
            "pass the survivors that plan counted with that plan's tensors"
        )
    if not 0 <= tokens <= hidden.shape[0] or not 0 <= longest <= tokens or tokens > rows * longest:
        raise ValueError(
            f"tokens is {tokens}, longest {longest}, rows {rows} and hidden has {hidden.shape[0]} tokens; "
            "pass the three numbers of one plan's counts"
        )


def check_on_device(name: str, tensor: Tensor, is_interpreted: bool) -> None:
    """Raise ValueError unless a kernel can be launched on this tensor."""
    if tensor.device.type != "cuda" and not is_interpreted:
        raise ValueError(
            f"{name} is on {tensor.device} and the kernel is compiled for a GPU; move it to a CUDA device, "
            "or call the function of this name in pabee_fast.kernels.reference"
        )


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


def _check_choice(name: str, given: str, choices: Sequence[str]) -> None:
    if given not in choices:
        raise ValueError(f"{name} is {given!r}; choose one of {', '.join(map(repr, choices))}")


def _check_ndim(name: str, tensor: Tensor, *dims: str) -> None:
    if tensor.ndim != len(dims):
        raise ValueError(f"{name} is {list(tensor.shape)}; give it the shape [{', '.join(dims)}]")


def _check(
    name: str,
    tensor: Tensor,
    shape: dict[str, int],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    if tuple(tensor.shape) != tuple(shape.values()):
        dims, sizes = ", ".join(shape), list(shape.values())
        raise ValueError(f"{name} is {list(tensor.shape)}; give it the shape [{dims}], here {sizes}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; convert it to {dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; move it to {device}, where the other tensors are")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous; make it so where it is allocated")
