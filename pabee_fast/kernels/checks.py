"""What the kernels and their references refuse: checks of shape, dtype, device and layout before anything is allocated.

Needs torch alone, so that it imports where Triton is not installed.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("label", "value", "label_set")
RULES = ("agreement", "confidence", "entropy", "divergence", "vote", "given", "none")
POOLINGS = ("first", "last", "mean")
ACTIVATIONS = ("tanh", "gelu", "relu")
FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS_PER_WORD = 32
# Of `short_attention`: in a tile of twice as many tokens a longer row would be alone, as it is in `attention`.
MAX_SHORT_ROW = 64


class Pooler(NamedTuple):
    """A dense layer and an activation between a row's pooled token and its head, computed before the exit step."""

    weight: Tensor
    """[width, hidden_size]."""
    bias: Tensor | None
    """[width]."""
    activation: str
    """One of ACTIVATIONS; gelu is the exact one, by erf."""


class RowState(NamedTuple):
    """What is kept of the rows of a packed batch from layer to layer; an exit step changes the first three in place."""

    keep: Tensor
    """[rows] int8: 1 while the row is being computed, 0 once it has left."""
    streak: Tensor
    """[rows] int32: how many consecutive tested layers met the rule's condition; -1 before the first valid answer."""
    memory: Tensor
    """[rows, words] int32: what the rule compares with at the next layer, see `memory_words`."""
    row_ids: Tensor
    """[rows] int64: where the row's results go; no two rows share one."""


class ExitRows(NamedTuple):
    """What an exit step reads of the rows of a packed batch, and where it leaves what those answered that leave."""

    features: Tensor
    """[tokens, hidden_size] packed hidden states, with `cu_seqlens` and `pooling`; or [rows, hidden_size] pooled
    features, with neither. float32, float16 or bfloat16; products are summed in float32."""
    state: RowState
    """Its keep, streak and memory are changed in place."""
    logits: Tensor
    """[results, classes] float32: written at `row_ids` for rows that leave now, and only for these."""
    exit_layers: Tensor
    """[results] int64: likewise."""
    cu_seqlens: Tensor | None = None
    """[rows + 1] int32: cumulative lengths in tokens."""
    pooling: str | None = None
    """Which token of a row its head reads: "first", "last", or the "mean" of all."""
    key_mask: Tensor | None = None
    """[tokens] bool: the tokens that count in a mean; None: all."""


class ExitHead(NamedTuple):
    """The head that an exit step asks: a linear layer over what it reads of a row."""

    weight: Tensor
    """[classes, hidden_size], dtype of the features."""
    bias: Tensor | None = None
    """[classes], dtype of the features; or None."""


class ExitRule(NamedTuple):
    """The rule by which rows leave at one layer; `reference.exit_step` says what each name means."""

    kind: str
    """What an answer is: "label", the argmax, lowest index on ties; "value", the one output; "label_set", the set of
    logits above 0."""
    name: str
    """One of RULES. All but "agreement", "given" and "none" need kind "label"."""
    layer: int
    """1-based number of layers that the rows have been given."""
    last: int
    """The layer at which every row leaves."""
    patience: int = 0
    """Number of layers, or of votes by rule "vote"; at least 1 where the rule counts."""
    threshold: float = 0.0
    """See the rule; for kind "value", in units of the output: a change strictly below it keeps the answer."""
    exit_at: Tensor | None = None
    """[results] int64, number of layers; for rule "given" and only then."""


@functools.cache
def memory_words(kind: str, rule: str, classes: int) -> int:
    """Return how many int32 words an exit step keeps of one row from layer to layer, beside its streak.

    Raises ValueError for an unknown kind or rule.
    """
    check_choice("kind", kind, KINDS)
    check_choice("rule", rule, RULES)
    if rule in ("agreement", "given"):
        return -(-classes // BITS_PER_WORD) if kind == "label_set" else 1
    return classes if rule in ("divergence", "vote") else 0


def check_exit_step(rows: ExitRows, head: ExitHead, rule: ExitRule) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `exit_step` can take them all."""
    features, state, logits = rows.features, rows.state, rows.logits
    check_ndim("features", features, "lines", "hidden_size")
    check_ndim("keep", state.keep, "rows")
    check_ndim("logits", logits, "results", "classes")
    check_ndim("weight", head.weight, "classes", "hidden_size")
    device, dtype = features.device, features.dtype
    hidden_size, classes = features.shape[1], head.weight.shape[0]
    count, results = state.keep.shape[0], logits.shape[0]
    if dtype not in FEATURE_DTYPES:
        names = ", ".join(map(str, FEATURE_DTYPES))
        raise ValueError(f"features is {dtype}; convert it to one of {names}")
    if classes == 0 or hidden_size == 0:
        raise ValueError(f"weight is {list(head.weight.shape)}; give the head at least one class and one input")
    check_tensor("weight", head.weight, {"classes": classes, "hidden_size": hidden_size}, dtype, device)
    if head.bias is not None:
        check_tensor("bias", head.bias, {"classes": classes}, dtype, device)
    if rows.pooling is None:
        check_tensor("features", features, {"rows": count, "hidden_size": hidden_size})
        for name, unread in (("cu_seqlens", rows.cu_seqlens), ("key_mask", rows.key_mask)):
            if unread is not None:
                raise ValueError(f"{name} is a tensor and pooling None; say which token of a row its head reads")
    else:
        check_pool(features, rows.cu_seqlens, rows=count, pooling=rows.pooling, key_mask=rows.key_mask)
    check_tensor("keep", state.keep, {"rows": count}, torch.int8, device)
    check_tensor("streak", state.streak, {"rows": count}, torch.int32, device)
    words = memory_words(rule.kind, rule.name, classes)
    check_tensor("memory", state.memory, {"rows": count, "words": words}, torch.int32, device)
    check_tensor("row_ids", state.row_ids, {"rows": count}, torch.int64, device)
    check_tensor("logits", logits, {"results": results, "classes": classes}, torch.float32, device)
    check_tensor("exit_layers", rows.exit_layers, {"results": results}, torch.int64, device)
    if rule.exit_at is not None:
        check_tensor("exit_at", rule.exit_at, {"results": results}, torch.int64, device)
    _check_rule(rule, classes)


def _check_rule(rule: ExitRule, classes: int) -> None:
    kind, name = rule.kind, rule.name
    if rule.layer < 1:
        raise ValueError(f"layer is {rule.layer}; layers are counted from 1")
    if kind == "value" and classes != 1:
        raise ValueError(f"kind is 'value' and weight has {classes} classes; give a head with one output")
    if kind != "label" and name in ("confidence", "entropy", "divergence", "vote"):
        raise ValueError(f"kind is {kind!r} and rule {name!r}; only 'label' has classes that exclude one another")
    if (rule.exit_at is not None) != (name == "given"):
        given = "None" if rule.exit_at is None else "a tensor"
        raise ValueError(f"exit_at is {given} and rule is {name!r}; pass exit_at with rule 'given' and only then")
    if name in ("given", "none"):
        return
    if (kind == "value" or name in ("confidence", "entropy", "divergence")) and not rule.threshold > 0:
        raise ValueError(f"threshold is {rule.threshold}; kind {kind!r} by rule {name!r} needs one above 0")
    if rule.patience < 1:
        raise ValueError(f"patience is {rule.patience}; rule {name!r} needs at least 1")


def check_pool(
    features: Tensor, cu_seqlens: Tensor | None, *, rows: int, pooling: str, key_mask: Tensor | None
) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless a row's token can be read by them."""
    check_choice("pooling", pooling, POOLINGS)
    check_ndim("features", features, "tokens", "hidden_size")
    tokens, hidden_size = features.shape
    check_tensor("features", features, {"tokens": tokens, "hidden_size": hidden_size})
    if cu_seqlens is None:
        raise ValueError(f"cu_seqlens is None and pooling {pooling!r}; say where the rows lie, or pass pooled features")
    check_tensor("cu_seqlens", cu_seqlens, {"rows + 1": rows + 1}, torch.int32, features.device)
    if key_mask is not None:
        if pooling != "mean":
            raise ValueError(f"key_mask is a tensor and pooling {pooling!r}; only 'mean' reads hidden tokens")
        check_tensor("key_mask", key_mask, {"tokens": tokens}, torch.bool, features.device)


def check_plan(keep: Tensor, cu_seqlens: Tensor, row_ids: Tensor, streak: Tensor) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `plan` can take them all."""
    check_ndim("keep", keep, "rows")
    rows, device = keep.shape[0], keep.device
    check_tensor("keep", keep, {"rows": rows}, torch.int8, device)
    check_tensor("cu_seqlens", cu_seqlens, {"rows + 1": rows + 1}, torch.int32, device)
    check_tensor("row_ids", row_ids, {"rows": rows}, torch.int64, device)
    check_tensor("streak", streak, {"rows": rows}, torch.int32, device)


def check_gather(
    hidden: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: int,
    tokens: int,
    longest: int,
    memory: Tensor | None,
    sources: Tensor | None,
) -> None:
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
    if (memory is None) != (sources is None):
        raise ValueError("memory and sources go together; pass the plan's sources with the rows' memory, or neither")
    if memory is not None and sources is not None:
        check_ndim("memory", memory, "old_rows", "words")
        old_rows, words = memory.shape
        check_tensor("memory", memory, {"old_rows": old_rows, "words": words}, torch.int32, hidden.device)
        check_tensor("sources", sources, {"rows": starts.shape[0]}, torch.int32, hidden.device)


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
    *,
    is_strided: bool = False,
) -> None:
    if tuple(tensor.shape) != tuple(shape.values()):
        dims, sizes = ", ".join(shape), list(shape.values())
        raise ValueError(f"{name} is {list(tensor.shape)}; give it the shape [{dims}], here {sizes}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; convert it to {dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; move it to {device}, where the other tensors are")
    if not (tensor.stride(-1) == 1 or tensor.shape[-1] == 1 if is_strided else tensor.is_contiguous()):
        what = "'s last dimension is not contiguous" if is_strided else " is not contiguous"
        raise ValueError(f"{name}{what}; make it so where it is allocated")
