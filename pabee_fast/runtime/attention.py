"""Attention within the rows of a packed batch, as a function that transformers' layers call by name.

It knows transformers' conventions and refuses what it does not know; who attends how stands in `ops.attention`.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask

from pabee_fast.errors import UnsupportedError
from pabee_fast.layout import Layout
from pabee_fast.runtime import ops

NAME = "pabee_fast_packed"

HARMLESS = ("deterministic", "position_ids", "use_cache")
"""What layers pass along and attention does not need: a flag of a backward pass; positions, which rotary embeddings
have used before; and a flag of the cache, which would have been filled before as well."""


@contextlib.contextmanager
def packed_attention_in(*configs: PretrainedConfig) -> Iterator[None]:
    """Route the layers that hold one of these configs to `packed_attention` meanwhile; the stock forward finds its own
    again after."""
    _register()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


@functools.cache
def _register() -> None:
    """Both interfaces need the name: without a mask function, a stock forward would silently get no mask."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return softmax(q k^T * scaling) v within each row.

    Args:
        module: the layer's attention module; its `is_causal` says whether a query sees the tokens after it.
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim]; kv_heads divides heads.
        value: [1, kv_heads, tokens, value_dim].
        attention_mask: must be None; a packed batch has `layout` instead.
        layout: where the rows lie.
        scaling: of the products; None: head_dim ** -0.5.
        dropout: must be 0, since packed layers only infer.
        is_causal: goes before the module's, as in transformers' own functions.
        sliding_window: a query sees the keys fewer than so many tokens away, before it if causal and else on both
            sides. That is what transformers' flash attention makes of the number, and its masks agree: causal ones
            (`sliding_window_causal_mask_function`) count the query's own token, and bidirectional layers, whose mask
            reaches `config.sliding_window` tokens to each side, pass one more.
        **kwargs: what does no harm is let through (HARMLESS, a false `output_attentions`); anything else that is not
            None raises, since ignoring it would change the result.

    Returns:
        [1, tokens, heads, value_dim] and None (no attention weights).

    Raises:
        UnsupportedError: an argument that packed attention does not know, dropout, or neither module nor caller says
            whether attention is causal.
    """
    layout.asked.append(module)
    unknown = [name for name, given in kwargs.items() if given is not None and name not in HARMLESS]
    if kwargs.get("output_attentions") is False:
        unknown.remove("output_attentions")
    unknown += ["attention_mask"] if attention_mask is not None else []
    unknown += ["dropout"] if dropout else []
    unknown += [f"sliding_window={sliding_window}"] if sliding_window is not None and sliding_window < 1 else []
    if unknown:
        raise UnsupportedError(f"packed attention cannot honour {', '.join(unknown)}; restore the model (pf.restore)")
    is_causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if is_causal is None:  # transformers' functions differ in what they take it for
        raise UnsupportedError(
            f"{type(module).__name__} does not say whether it is causal: set its is_causal to True or False"
        )
    if torch.is_autocast_enabled(query.device.type):
        # As autocast does with torch's own attention: rotary embeddings leave query and key in float32.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return ops.attention(q, k, v, layout, scaling=scaling, is_causal=is_causal, window=sliding_window)[None], None
