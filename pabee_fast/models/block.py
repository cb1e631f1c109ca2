"""The post-norm block that BERT and its kin share, by what its parts do; families name them differently."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn


class Block(NamedTuple):
    """The modules of one block: attention and a feed-forward layer, each followed by residual and layer norm.

    With x [tokens, hidden_size]: a = attention_norm(output(attend(query(x), key(x), value(x))) + x), and the block's
    output is norm(down(activation(up(a))) + a).
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: nn.Module
    down: nn.Linear
    norm: nn.LayerNorm
    head_dim: int
    scaling: float
    place_key: nn.Linear | None = None
    """What makes keys of relative places, which queries meet beside those of tokens; None: they do not."""
    place_query: nn.Linear | None = None
    """What makes queries of relative places, which keys meet; None: they do not."""


class Places(NamedTuple):
    """What all layers of a model know of relative places, each of them through its own projections of it."""

    embeddings: Callable[[], Tensor]
    """Gives [lines, hidden_size], as the layers read them."""
    lines: Callable[[np.ndarray], np.ndarray]
    """The line of each distance, of a key's place from a query's: [distances] int64 to the same; it never falls."""


def bert_block(layer: Any) -> Block:
    """Return the block that BERT's layers are, and those of the models that took over its code."""
    attention, own = layer.attention, layer.attention.self
    return Block(
        query=own.query,
        key=own.key,
        value=own.value,
        output=attention.output.dense,
        attention_norm=attention.output.LayerNorm,
        up=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        down=layer.output.dense,
        norm=layer.output.LayerNorm,
        head_dim=own.attention_head_size,
        scaling=own.scaling,
    )
