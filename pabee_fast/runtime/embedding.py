"""The embedding in front of post-norm layers, by one kernel while a model runs packed rows."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pabee_fast.runtime import ops
from pabee_fast.runtime.stock import parts_of, why_not_stock

FUSED = frozenset({"cuda"})
"""Where word, position and type are looked up, added and normalised in one launch: stock modules do it in six, which
move seven times the bytes (counted) and are a twentieth of a run of skewed exits (BERT-base, H200: 5.4 of 100 ms)."""

_KNOWN = frozenset({nn.Embedding, nn.LayerNorm, nn.Dropout})


def fused_embedding(embeddings: nn.Module | None, package: str) -> Callable[..., Tensor] | None:
    """Return what computes a stock embedding in one launch, called as the module is; None where the module is not, or
    not any more, what the modelling code of `package` made.

    Args:
        embeddings: the module in front of post-norm blocks.
    """
    parts = () if embeddings is None else parts_of(embeddings)
    if embeddings is None or why_not_stock(parts, package) or not {type(part) for part in parts[1:]} <= _KNOWN:
        return None
    tables = [getattr(embeddings, f"{name}_embeddings", None) for name in ("word", "position", "token_type")]
    norm: Any = getattr(embeddings, "LayerNorm", None)
    if None in (*tables[:2], norm) or any(table.max_norm is not None for table in tables if table is not None):
        return None
    weights: list[Any] = [None if table is None else table.weight for table in tables]
    tensors: list[Any] = [*(weight for weight in weights if weight is not None), norm.weight, norm.bias]
    first = tensors[0]
    kinds = {(type(each), getattr(each, "dtype", None), getattr(each, "device", None)) for each in tensors}
    if kinds != {(nn.Parameter, first.dtype, first.device)} or first.device.type not in FUSED:
        return None
    if not all(each.is_contiguous() and each.shape[-1] == first.shape[-1] for each in tensors):
        return None
    return functools.partial(_embed, embeddings, weights, norm)


def _embed(
    embeddings: Any,
    tables: list[Any],
    norm: nn.LayerNorm,
    /,
    input_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    """Return [1, tokens, hidden_size] of packed ids [1, tokens]; what else is given goes the module's own way."""
    words, positions, types = tables
    if input_ids is None or position_ids is None:
        given = {"input_ids": input_ids, "position_ids": position_ids, **rest}
        if types is not None:
            given["token_type_ids"] = token_type_ids
        out: Tensor = type(embeddings).forward(embeddings, **given)
        return out
    if types is None:
        token_type_ids = None
    elif token_type_ids is None:  # by position, where the module has such a table; else of the first type
        token_type_ids = torch.zeros_like(position_ids)
        if hasattr(embeddings, "token_type_ids"):
            token_type_ids = embeddings.token_type_ids[0].index_select(0, position_ids[0])[None]
    return ops.embed_norm(
        input_ids[0], position_ids[0], None if token_type_ids is None else token_type_ids[0], words, positions, types,
        norm.weight, norm.bias, eps=norm.eps,
    )[None]  # fmt: skip
