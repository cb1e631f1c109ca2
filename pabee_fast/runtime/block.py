"""The post-norm block on packed tokens, from the tensors of its modules.

It knows tensors and how they are multiplied; which layers are such blocks, and which way is taken, stands in
`runtime/layers.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

from pabee_fast.layout import Layout
from pabee_fast.models.block import Block
from pabee_fast.runtime import ops
from pabee_fast.runtime.joined import joined
from pabee_fast.runtime.places import PlaceTables

JOINED = frozenset({"cuda"})
"""Where query, key and value are one product of three times the width: that moves 6,144 bytes a token of BERT-base in
half precision, three products 9,216, and fills a GPU longer while rows leave. Counted, not measured. On a CPU three
take no longer than one (bench/layers.py measures both), and weights stay where they are."""


class Dense(NamedTuple):
    """A linear layer's tensors."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    @classmethod
    def of(cls, module: nn.Linear) -> "Dense":
        return cls(module.weight, module.bias)


class Norm(NamedTuple):
    """A layer norm's tensors, and what is added to the variance."""

    gain: Tensor  # [hidden_size]
    shift: Tensor  # [hidden_size]
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> "Norm":
        return cls(module.weight, module.bias, module.eps)


@dataclass
class Weights:
    """What one block multiplies with, while its parameters lie where they are."""

    apart: tuple[Dense, ...]
    """Query, key and value."""
    output: Dense
    attention_norm: Norm
    up: Dense
    activation: str
    down: Dense
    norm: Norm
    head_dim: int
    scaling: float
    tables: PlaceTables | None = None
    """Of all layers of a model that attends by place too."""
    place_key: Dense | None = None
    place_query: Dense | None = None
    projections: tuple[Dense, ...] = ()
    """Query, key and value; or all three in one, where JOINED says so. Within a run only: nobody else would hold what
    was joined, once the parameters have moved on."""

    @classmethod
    def of(cls, block: Block, activation: str, tables: PlaceTables | None = None) -> "Weights":
        """Return the tensors of `block`."""
        return cls(
            tuple(map(Dense.of, (block.query, block.key, block.value))),
            Dense.of(block.output),
            Norm.of(block.attention_norm),
            Dense.of(block.up),
            activation,
            Dense.of(block.down),
            Norm.of(block.norm),
            block.head_dim,
            block.scaling,
            tables,
            None if block.place_key is None else Dense.of(block.place_key),
            None if block.place_query is None else Dense.of(block.place_query),
        )

    def take(self) -> None:
        """Make ready, unless that is done: by a run's first wave, layer by layer, so that a GPU has work meanwhile."""
        if self.projections:
            return
        self.projections = self.apart
        if self.apart[0].weight.device.type in JOINED:
            biases = [part.bias for part in self.apart if part.bias is not None]
            weight = joined([part.weight for part in self.apart])
            self.projections = (Dense(weight, joined(biases) if biases else None),)

    def let_go(self) -> None:
        """Hold nothing but the parameters themselves."""
        self.projections = ()


def fused(weights: Weights, hidden: Tensor, layout: Layout, pooling: str | None = None) -> Tensor:
    """Return the block over hidden [tokens, hidden_size], with bias, residual and norm in one pass, bias and activation
    in another, and no copy of an activation but the one that a product writes.

    Args:
        pooling: "first" or "last": of each row this token alone, [rows, hidden_size], which nothing but keys and values
            needs the others for. None: all tokens.
    """
    attended = _attend(weights, hidden, layout)
    if pooling is not None:
        attended, hidden = (ops.pool(each, layout.cu_seqlens, pooling=pooling) for each in (attended, hidden))
    attended = _add_norm(attended, weights.output, hidden, weights.attention_norm)
    inner = ops.linear_act(attended, *weights.up, activation=weights.activation)
    return _add_norm(inner, weights.down, attended, weights.norm)


def _attend(weights: Weights, hidden: Tensor, layout: Layout) -> Tensor:
    """Return [tokens, heads * head_dim]: attention in front of its output product."""
    weights.take()
    shape = (hidden.shape[0], 3 // len(weights.projections), -1, weights.head_dim)
    (weight, bias), *rest = weights.projections
    by_place = weights.tables is not None
    if rest or bias is None or by_place or not ops.adds_biases(hidden, weights.head_dim, layout):
        projected, biases = [linear(hidden, *dense).view(shape) for dense in weights.projections], {}
    else:
        # Attention adds the biases as it reads: of this width the library's product takes a sixth longer with its own
        # (131,072 tokens of BERT-base in bfloat16 on an H200: 743 us, and 643 without).
        projected, (query_bias, _, value_bias) = [linear(hidden, weight).view(shape)], bias.view(shape[1:])
        biases = {"query_bias": query_bias, "value_bias": value_bias}
    query, key, value = (part for each in projected for part in each.unbind(1))
    if weights.tables is None:
        return ops.attention(query, key, value, layout, scaling=weights.scaling, is_ours=True, **biases).flatten(1)
    size = (layout.max_seqlen, weights.head_dim)
    return ops.disentangled_attention(
        query,
        key,
        value,
        layout,
        place_keys=weights.tables.keys(weights.place_key, *size),
        place_queries=weights.tables.queries(weights.place_query, *size),
        scaling=weights.scaling,
    ).flatten(1)


def _add_norm(hidden: Tensor, dense: Dense, residual: Tensor, norm: Norm) -> Tensor:
    return ops.linear_add_norm(hidden, *dense, residual, norm.gain, norm.shift, eps=norm.eps)
