"""What attention demands of its arguments."""

import torch
from torch import Tensor

from .checks import FEATURE_DTYPES, MAX_SHORT_ROW, check_ndim, check_tensor


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `attention` can take them all."""
    check_ndim("query", query, "tokens", "heads", "head_dim")
    check_ndim("key", key, "tokens", "kv_heads", "head_dim")
    check_ndim("value", value, "tokens", "kv_heads", "value_dim")
    check_ndim("cu_seqlens", cu_seqlens, "rows + 1")
    (tokens, heads, head_dim), kv_heads, value_dim = query.shape, key.shape[1], value.shape[2]
    dtype, device = query.dtype, query.device
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"query is {dtype}; convert it to one of {', '.join(map(str, FEATURE_DTYPES))}")
    if 0 in (heads, kv_heads, head_dim, value_dim) or heads % kv_heads:
        raise ValueError(
            f"query is {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)}; give key and value a "
            "number of heads that divides the query's, and no head without numbers"
        )
    shape, kv_shape = {"tokens": tokens, "heads": heads}, {"tokens": tokens, "kv_heads": kv_heads}
    check_tensor("query", query, {**shape, "head_dim": head_dim}, dtype, device, is_strided=True)
    check_tensor("key", key, {**kv_shape, "head_dim": head_dim}, dtype, device, is_strided=True)
    check_tensor("value", value, {**kv_shape, "value_dim": value_dim}, dtype, device, is_strided=True)
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens is [0]; it starts with 0 and has one entry more than there are rows")
    check_tensor("cu_seqlens", cu_seqlens, {"rows + 1": cu_seqlens.shape[0]}, torch.int32, device)
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; a query sees at least itself, so give at least 1, or None for no window")
    if key_mask is not None:
        check_tensor("key_mask", key_mask, {"tokens": tokens}, torch.bool, device)
    if positions is not None:
        check_tensor("positions", positions, {"tokens": tokens}, torch.int32, device)


def check_short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
    query_bias: Tensor | None,
    value_bias: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `short_attention` can take them all."""
    check_attention(query, key, value, cu_seqlens, window=window, key_mask=key_mask, positions=positions)
    if longest > MAX_SHORT_ROW:
        raise ValueError(f"longest is {longest}; a tile holds rows of up to {MAX_SHORT_ROW} tokens, so call attention")
    for name, bias, of in (("query_bias", query_bias, query), ("value_bias", value_bias, value)):
        if bias is not None:
            check_tensor(name, bias, {"heads": of.shape[1], "numbers": of.shape[2]}, of.dtype, of.device)


def check_disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    place_keys: Tensor | None,
    place_queries: Tensor | None,
    key_mask: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, what was given and the fix, unless `disentangled_attention` can take them
    all."""
    check_attention(query, key, value, cu_seqlens, window=None, key_mask=key_mask, positions=None)
    _, heads, head_dim = query.shape
    if key.shape[1] != heads:
        raise ValueError(f"key is {list(key.shape)}; give it as many heads as query has, here {heads}")
    for name, table in (("place_keys", place_keys), ("place_queries", place_queries)):
        if table is None:
            continue
        check_ndim(name, table, "lines", "heads", "head_dim")
        lines = table.shape[0]
        shape = {"lines": lines, "heads": heads, "head_dim": head_dim}
        check_tensor(name, table, shape, query.dtype, query.device)
        if lines % 2 == 0 or lines < 2 * longest - 1:
            raise ValueError(
                f"{name} has {lines} lines; rows of {longest} tokens need an odd number, at least {2 * longest - 1}: "
                "one for each distance to either side, and the middle one for none"
            )
    if place_keys is not None and place_queries is not None and len(place_keys) != len(place_queries):
        raise ValueError(f"place_queries has {len(place_queries)} lines and place_keys {len(place_keys)}; give as many")
