"""The one seam to the kernels: CUDA tensors go to Triton, others to the reference."""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import (
    FEATURE_DTYPES,
    ExitHead,
    ExitRows,
    ExitRule,
    RowState,
    check_tensor,
    memory_words,
)
from pabee_fast.kernels.checks_attention import check_attention
from pabee_fast.kernels.launch import MAX_HIDDEN_SIZE, Plan
from pabee_fast.kernels.launch_attention import MAX_HEAD_DIM, MAX_PLACE_HEAD
from pabee_fast.kernels.reference import count, observe
from pabee_fast.layout import Layout
from pabee_fast.models.head import through_pooler
from pabee_fast.runtime import choice, varlen

__all__ = [
    "ExitHead", "ExitRows", "ExitRule", "Plan", "RowState", "attention", "attention_in_use",
    "check_head", "count", "disentangled_attention", "disentangled_in_use", "embed_norm", "gather",
    "has_kernels", "kernels_in_use", "memory_words", "observe", "pool", "repeated",
    "through_pooler",
]  # fmt: skip

logger = logging.getLogger(__name__)

_INT32_MAX = 2**31 - 1


@functools.cache
def _triton_kernels() -> dict[str, ModuleType] | None:
    """Return the modules for CUDA by the name of their function; says once why there are none."""
    try:
        from pabee_fast.kernels import table
    except ImportError as error:
        logger.warning(
            "exit step, compaction and attention run as plain torch on CUDA where no library serves, and wait for the "
            "device at every layer: Triton cannot be imported (%s)",
            error,
        )
        return None
    return table.FUNCTIONS


def _kernel(name: str, tensor: Tensor) -> Callable[..., Any]:
    """Return what serves a tensor: the Triton function of that name, which checks nothing, or its reference."""
    return _unchecked(name) if tensor.is_cuda else cast(Callable[..., Any], getattr(reference, name))


@functools.cache
def _unchecked(name: str) -> Callable[..., Any]:
    modules = _triton_kernels()
    return getattr(reference, name) if modules is None else getattr(modules[name], f"{name}_unchecked")


def repeated(name: str, tensor: Tensor, **fixed: Any) -> Callable[..., Any]:
    """Return what serves tensors like this one at one place of a model, where some arguments stay: it is called with
    the others, by their names."""
    if tensor.is_cuda and _triton_kernels() is not None:
        from pabee_fast.kernels import table

        return table.REPEATED[name](**fixed)
    return functools.partial(_kernel(name, tensor), **fixed)


def has_kernels(device: torch.device) -> bool:
    """Return whether Triton serves tensors on `device`."""
    return device.type == "cuda" and _triton_kernels() is not None


def kernels_in_use(device: torch.device) -> str:
    """In words: what runs exit step and compaction on `device`."""
    if device.type != "cuda":
        return f"plain torch, since Triton kernels need CUDA and the device is {device.type}"
    return "plain torch, since Triton cannot be imported" if _triton_kernels() is None else "Triton"


def check_head(head: ExitHead, classes: int, inputs: int | None) -> None:
    """Raise ValueError, naming what is wrong, unless an exit step can ask this head: done when heads are bound, since
    kernels are launched without checks.

    Args:
        inputs: what it reads of a row where nothing stands between; None: something does, which is checked as it comes.
    """
    weight, bias = head
    if weight.dtype not in FEATURE_DTYPES:
        raise ValueError(
            f"a head's weight is {weight.dtype}; convert it to one of {', '.join(map(str, FEATURE_DTYPES))}"
        )
    width = weight.shape[-1] if inputs is None else inputs
    check_tensor("a head's weight", weight, {"classes": classes, "width": width})
    if bias is not None:
        check_tensor("a head's bias", bias, {"classes": classes}, weight.dtype, weight.device)


def pool(
    features: Tensor,
    cu_seqlens: Tensor,
    *,
    pooling: str,
    norm: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> Tensor:
    """See `kernels.reference.pool`.

    Args:
        norm: what every token goes through before it is read; it treats tokens alike, so that of a row that gives one
            token only that one is computed.
    """
    if norm is not None and pooling == "mean":
        features, norm = norm(features), None
    if not features.is_contiguous():
        features = features.contiguous()
    pooled = cast(Tensor, _kernel("pool", features)(features, cu_seqlens, pooling=pooling, **options))
    return pooled if norm is None else norm(pooled)


def gather(hidden: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """See `kernels.reference.gather`."""
    return cast(tuple[Tensor, Tensor | None], _kernel("gather", hidden)(hidden.contiguous(), *args, **options))


def embed_norm(word_ids: Tensor, *rest: Tensor | None, eps: float) -> Tensor:
    """See `kernels.reference.embed_norm`."""
    return cast(Tensor, _kernel("embed_norm", word_ids)(word_ids, *rest, eps=eps))


def linear_add_norm(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, gain: Tensor, shift: Tensor, *, eps: float
) -> Tensor:
    """Return the layer norm of a linear layer plus `residual`.

    Args:
        hidden: [tokens, in].
        weight: [out, in].
        bias: [out], or None.
        residual: [tokens, out].
        gain, shift: [out]; see `kernels.reference.add_norm`.
        eps: added to the variance.

    Returns:
        [tokens, out].
    """
    norm = _kernel("add_norm", hidden)
    if norm is not reference.add_norm and weight.shape[0] <= MAX_HIDDEN_SIZE:
        return cast(Tensor, norm(linear(hidden, weight), bias, residual, gain, shift, eps=eps))
    # As the stock layer computes it, to the bit; the sum takes the product's place.
    return layer_norm(linear(hidden, weight, bias).add_(residual), gain.shape, gain, shift, eps)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    is_ours: bool = False,
    **biases: Tensor,
) -> Tensor:
    """Return attention within each row of a packed batch, by what serves these tensors best; see `attention_in_use`.

    Args:
        query: [tokens, heads, head_dim]. Here and below only the last dimension need be contiguous: the three views of
            one joined projection [tokens, 3, heads, head_dim] are taken as they are.
        key: [tokens, kv_heads, head_dim], with kv_heads a divisor of heads (grouped-query attention).
        value: [tokens, kv_heads, value_dim].
        layout: where the rows lie, and which of their tokens nobody attends to.
        scaling: of the products; None: head_dim ** -0.5.
        is_causal: whether a query sees only its own token and those before it.
        window: a query sees the keys fewer than so many tokens away, on both sides unless `is_causal`; transformers'
            `sliding_window` as its layers pass it on. None: all of the row.
        is_ours: whether the tensors come from a block of ours, whose weights were checked, so that they need not be.
        biases: query_bias and value_bias, where the kernel for short rows serves; see
            `kernels.reference.short_attention`.

    Returns:
        [tokens, heads, value_dim], contiguous; zeros for a query that sees no key.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit.
    """
    if window is not None and (window > _INT32_MAX or (layout.positions is None and window >= layout.max_seqlen)):
        window = None  # it hides nothing: places are int32
    # Only windows measure by places of the padded layout: order is the same in both.
    positions = None if window is None else layout.positions
    options: dict[str, Any] = {"scaling": scaling, "is_causal": is_causal, "window": window}
    marks: dict[str, Any] = {"key_mask": layout.key_mask, "positions": positions}
    largest, asked, longest = max(query.shape[-1], value.shape[-1]), layout.attention, layout.max_seqlen
    if choice.takes_short(query.device, query.dtype, largest, longest, asked):
        attend = _kernel("short_attention", query)
        if not is_ours:
            check_attention(query, key, value, layout.cu_seqlens, window=window, **marks)
        options |= biases
        return cast(Tensor, attend(query, key, value, layout.cu_seqlens, longest=longest, **options, **marks))
    is_plain = layout.key_mask is None and positions is None and value.shape[-1] == query.shape[-1]
    if is_plain and asked != "kernel":
        is_grouped = query.shape[1] != key.shape[1]
        if varlen.why_not(query.device, query.dtype, query.shape[-1], is_grouped) is None:
            return varlen.attend(query, key, value, layout, **options)
    attend = _kernel("attention", query)
    if attend is not reference.attention and largest > MAX_HEAD_DIM:
        _say_too_large_heads(largest, MAX_HEAD_DIM)
        attend = reference.attention
    if attend is not reference.attention and not is_ours:
        check_attention(query, key, value, layout.cu_seqlens, window=window, **marks)
    return cast(Tensor, attend(query, key, value, layout.cu_seqlens, **options, **marks))


def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    place_keys: Tensor | None,
    place_queries: Tensor | None,
    scaling: float,
) -> Tensor:
    """Return attention by content and by relative place within each row of a packed batch, of a block's tensors; see
    `kernels.reference.disentangled_attention`. A hidden token attends to all of its row alike."""
    if place_keys is None and place_queries is None and layout.key_mask is None:
        return attention(query, key, value, layout, scaling=scaling, is_ours=True)
    attend = _kernel("disentangled_attention", query)
    if attend is not reference.disentangled_attention and query.shape[-1] > MAX_PLACE_HEAD:
        _say_too_large_heads(query.shape[-1], MAX_PLACE_HEAD)
        attend = reference.disentangled_attention
    options: dict[str, Any] = {"place_keys": place_keys, "place_queries": place_queries, "scaling": scaling}
    cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
    attended = attend(query, key, value, cu_seqlens, longest=longest, key_mask=layout.key_mask, **options)
    return cast(Tensor, attended)


def disentangled_in_use(device: torch.device, head_dim: int) -> str:
    """In words: which attention by content and place serves heads of `head_dim` numbers."""
    if has_kernels(device) and head_dim <= MAX_PLACE_HEAD:
        return "Triton, by content and place"
    return "by content and place, scaled_dot_product_attention over runs of rows of one length"


@functools.cache
def _say_too_large_heads(size: int, most: int) -> None:
    logger.warning("attention runs as plain torch: heads of %d numbers, and the kernel holds %d", size, most)


def attention_in_use(device: torch.device, dtype: torch.dtype, head_dim: int, *, is_grouped: bool = False) -> str:
    """In words: which attention serves heads of `head_dim` numbers, several of them to a key where `is_grouped`, and
    why."""
    if short := choice.most_short(device, dtype, head_dim) if has_kernels(device) else 0:
        rest = _attention_in_use(device, dtype, head_dim, is_grouped)
        return f"Triton, several rows to a tile, where none has more than {short} tokens (measured); else {rest}"
    return _attention_in_use(device, dtype, head_dim, is_grouped)


def _attention_in_use(device: torch.device, dtype: torch.dtype, head_dim: int, is_grouped: bool) -> str:
    why = varlen.why_not(device, dtype, head_dim, is_grouped)
    ours = "Triton"
    if device.type != "cuda" or head_dim > MAX_HEAD_DIM or _triton_kernels() is None:
        ours = "scaled_dot_product_attention over runs of rows of one length"
    if why is None:
        return f"torch.nn.attention.varlen; {ours} where a mask hides tokens inside a row"
    if device.type == "cuda" and ours != "Triton":
        why += "; ours for heads of up to 256" if head_dim > MAX_HEAD_DIM else "; Triton cannot be imported"
    return f"{ours} ({why})"
