"""What the kernels in front of and within a layer demand of their arguments."""

from typing import Any

import torch
from torch import Tensor

from .checks import FEATURE_DTYPES, check_choice, check_ndim, check_tensor

INNER_ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
ID_DTYPES = (torch.int32, torch.int64)
# What Hopper's tensor copies demand of addresses and rows.
DESCRIPTOR_BYTES = 16


def check_add_norm(product: Tensor, bias: Tensor | None, residual: Tensor, gain: Tensor, shift: Tensor) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `add_norm` can take them all."""
    _check_product(product, "hidden_size")
    tokens, hidden_size = product.shape
    same: dict[str, Any] = {"dtype": product.dtype, "device": product.device}
    check_tensor("residual", residual, {"tokens": tokens, "hidden_size": hidden_size}, **same)
    if tokens and residual.data_ptr() == product.data_ptr() != 0:
        raise ValueError("residual is product, which is overwritten; pass what entered the sublayer")
    for name, vector in (("bias", bias), ("gain", gain), ("shift", shift)):
        if vector is not None:
            check_tensor(name, vector, {"hidden_size": hidden_size}, **same)


def check_embed_norm(
    word_ids: Tensor,
    position_ids: Tensor,
    type_ids: Tensor | None,
    words: Tensor,
    positions: Tensor,
    types: Tensor | None,
    gain: Tensor,
    shift: Tensor,
) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `embed_norm` can take them all."""
    check_ndim("words", words, "words", "hidden_size")
    if words.dtype not in FEATURE_DTYPES:
        raise ValueError(f"words is {words.dtype}; convert it to one of {', '.join(map(str, FEATURE_DTYPES))}")
    if (type_ids is None) != (types is None):
        raise ValueError("give both type_ids and types, or neither")
    tokens, hidden_size = word_ids.numel(), words.shape[1]
    for name, ids in (("word_ids", word_ids), ("position_ids", position_ids), ("type_ids", type_ids)):
        if ids is not None:
            if ids.dtype not in ID_DTYPES:
                raise ValueError(f"{name} is {ids.dtype}; convert it to one of {', '.join(map(str, ID_DTYPES))}")
            check_tensor(name, ids, {"tokens": tokens}, device=words.device)
    for name, table in (("words", words), ("positions", positions), ("types", types)):
        if table is not None:
            shape = {name: table.shape[0], "hidden_size": hidden_size}
            check_tensor(name, table, shape, words.dtype, words.device)
    for name, vector in (("gain", gain), ("shift", shift)):
        check_tensor(name, vector, {"hidden_size": hidden_size}, words.dtype, words.device)


def check_bias_act(product: Tensor, bias: Tensor | None, *, activation: str) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `bias_act` can take them all."""
    check_choice("activation", activation, INNER_ACTIVATIONS)
    _check_product(product, "width")
    if bias is not None:
        check_tensor("bias", bias, {"width": product.shape[1]}, product.dtype, product.device)


def check_linear_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `linear_gelu` can take them all."""
    check_ndim("hidden", hidden, "tokens", "hidden_size")
    check_ndim("weight", weight, "width", "hidden_size")
    if hidden.dtype not in FEATURE_DTYPES:
        raise ValueError(f"hidden is {hidden.dtype}; convert it to one of {', '.join(map(str, FEATURE_DTYPES))}")
    (tokens, hidden_size), width = hidden.shape, weight.shape[0]
    same: dict[str, Any] = {"dtype": hidden.dtype, "device": hidden.device}
    check_tensor("hidden", hidden, {"tokens": tokens, "hidden_size": hidden_size})
    check_tensor("weight", weight, {"width": width, "hidden_size": hidden_size}, **same)
    check_tensor("bias", bias, {"width": width}, **same)
    if not has_descriptors(hidden, weight):
        raise ValueError(
            f"hidden is {list(hidden.shape)} and weight {list(weight.shape)} of {hidden.dtype}; descriptors take what "
            f"begins, row by row, at multiples of {DESCRIPTOR_BYTES} bytes, so call linear and bias_act"
        )


def has_descriptors(hidden: Tensor, weight: Tensor) -> bool:
    """Return whether `linear_gelu` can move blocks of these and of its result by descriptors."""
    rows = (hidden.shape[1], *weight.shape)
    return not (
        any(size * hidden.dtype.itemsize % DESCRIPTOR_BYTES for size in rows)
        or (hidden.data_ptr() | weight.data_ptr()) % DESCRIPTOR_BYTES
    )


def _check_product(product: Tensor, width: str) -> None:
    check_ndim("product", product, "tokens", width)
    if product.dtype not in FEATURE_DTYPES:
        raise ValueError(f"product is {product.dtype}; convert it to one of {', '.join(map(str, FEATURE_DTYPES))}")
    check_tensor("product", product, {"tokens": product.shape[0], width: product.shape[1]})
