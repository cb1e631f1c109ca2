"""What the kernels and their references refuse: checks of shape, dtype, device and layout before anything is allocated.

Needs torch alone, so that it imports where Triton is not installed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("label", "value", "label_set")
RULES = ("streak", "given", "all")
FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS_PER_WORD = 32


def answer_words(kind: str, classes: int) -> int:
    """Return how many int32 words one row's answer takes.

    Raises ValueError for an unknown kind.
    """
    check_choice("kind", kind, KINDS)
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
    check_choice("rule", rule, RULES)
    check_ndim("features", features, "lines", "hidden_size")
    check_ndim("weight", weight, "classes", "hidden_size")
    check_ndim("keep", keep, "rows")
    check_ndim("logits", logits, "results", "classes")
    device = features.device
    hidden_size, classes, rows, results = features.shape[1], weight.shape[0], keep.shape[0], logits.shape[0]
    if features.dtype not in FEATURE_DTYPES:
        names = ", ".join(map(str, FEATURE_DTYPES))
        raise ValueError(f"features is {features.dtype}; convert it to one of {names}")
    if classes == 0 or hidden_size == 0:
        raise ValueError(f"weight is {list(weight.shape)}; give the head at least one class and one input")
    lines = features.shape[0] if starts is not None else rows
    check_tensor("features", features, {"lines" if starts is not None else "rows": lines, "hidden_size": hidden_size})
    check_tensor("weight", weight, {"classes": classes, "hidden_size": hidden_size}, features.dtype, device)
    if bias is not None:
        check_tensor("bias", bias, {"classes": classes}, features.dtype, device)
    check_tensor("keep", keep, {"rows": rows}, torch.int8, device)
    check_tensor("streak", streak, {"rows": rows}, torch.int32, device)
    check_tensor("answer", answer, {"rows": rows, "words": answer_words(kind, classes)}, torch.int32, device)
    check_tensor("row_ids", row_ids, {"rows": rows}, torch.int64, device)
    check_tensor("logits", logits, {"results": results, "classes": classes}, torch.float32, device)
    check_tensor("exit_layers", exit_layers, {"results": results}, torch.int64, device)
    if starts is not None:
        check_tensor("starts", starts, {"rows": rows}, torch.int32, device)
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
        check_tensor("exit_at", exit_at, {"results": results}, torch.int64, device)


def check_plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor, answer: Tensor) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `plan` can take them all."""
    check_ndim("keep", keep, "rows")
    check_ndim("answer", answer, "rows", "words")
    rows, device = keep.shape[0], keep.device
    check_tensor("keep", keep, {"rows": rows}, torch.int8, device)
    check_tensor("cu_seqlens", cu_seqlens, {"rows + 1": rows + 1}, torch.int32, device)
    check_tensor("row_ids", row_ids, {"rows": rows}, torch.int64, device)
    check_tensor("streak", streak, {"rows": rows}, torch.int32, device)
    check_tensor("answer", answer, {"rows": rows, "words": answer.shape[1]}, torch.int32, device)


def check_gather(hidden: Tensor, starts: Tensor, cu_seqlens: Tensor, *, rows: int, tokens: int, longest: int) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `gather` can take them all."""
    if hidden.ndim == 0:
        raise ValueError("hidden has no dimensions; its first one must count tokens")
    if not hidden.is_contiguous():
        raise ValueError("hidden is not contiguous; make it so where it is allocated")
    check_ndim("starts", starts, "rows")
    check_ndim("cu_seqlens", cu_seqlens, "rows + 1")
    check_tensor("starts", starts, {"rows": starts.shape[0]}, torch.int32, hidden.device)
    check_tensor("cu_seqlens", cu_seqlens, {"rows + 1": cu_seqlens.shape[0]}, torch.int32, hidden.device)
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


def check_choice(name: str, given: str, choices: Sequence[str]) -> None:
    if given not in choices:
        raise ValueError(f"{name} is {given!r}; choose one of {', '.join(map(repr, choices))}")


def check_ndim(name: str, tensor: Tensor, *dims: str) -> None:
    if tensor.ndim != len(dims):
        raise ValueError(f"{name} is {list(tensor.shape)}; give it the shape [{', '.join(dims)}]")


def check_tensor(
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
