"""The post-norm block on packed tokens, from the tensors of its modules.

It knows tensors and how they are multiplied; which layers are such blocks, and which way is taken, stands in
`runtime/layers.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

from pabee_fast.layout import Layout
from pabee_fast.models.block import Block
from pabee_fast.runtime import bound, ops
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


@dataclass
class BoundBlock:
    """One block, while its parameters lie where they are."""

    apart: tuple[Dense, ...]
    """Query, key and value."""
    end_attention: Callable[[Tensor, Tensor], Tensor]
    """Of what was attended to and the residual: attention's output product, and the norm of both together."""
    activate: Callable[[Tensor], Tensor]
    """Of the tokens: the first product of the feed-forward part, and its activation."""
    end: Callable[[Tensor, Tensor], Tensor]
    """Of that and the residual: the second product, and the norm."""
    pool: Callable[..., Tensor]
    """As `kernels.reference.pool`, all by name."""
    head_dim: int
    scaling: float
    tables: PlaceTables | None = None
    """Of all layers of a model that attends by place too."""
    place_key: Dense | None = None
    place_query: Dense | None = None
    joined_attention: bound.JoinedAttention | None = None
    """Where JOINED says that query, key and value are one product; None elsewhere."""
    projections: tuple[Dense, ...] = ()
    """Query, key and value; or all three in one. Within a run only: nobody else would hold what was joined, once the
    parameters have moved on."""
    biases: tuple[Tensor, ...] = ()
    """Of what was joined, each [heads, head_dim]; (): none, or nothing was."""

    @classmethod
    def of(cls, block: Block, activation: str, tables: PlaceTables | None = None) -> "BoundBlock":
        """Bind a block to the tensors of its modules."""
        query, attention = block.query.weight, None
        if query.device.type in JOINED and tables is None:
            heads = query.shape[0] // block.head_dim
            attention = bound.JoinedAttention(query, heads, block.head_dim, block.scaling)
        return cls(
            tuple(map(Dense.of, (block.query, block.key, block.value))),
            _product_and_norm(block.output, block.attention_norm),
            bound.linear_act(*Dense.of(block.up), activation=activation),
            _product_and_norm(block.down, block.norm),
            ops.repeated("pool", query),
            block.head_dim,
            block.scaling,
            tables,
            None if block.place_key is None else Dense.of(block.place_key),
            None if block.place_query is None else Dense.of(block.place_query),
            attention,
        )

    def take(self) -> None:
        """Make ready, unless that is done: by a run's first wave, layer by layer, so that a GPU has work meanwhile."""
        if self.projections:
            return
        self.projections = self.apart
        if self.apart[0].weight.device.type in JOINED:
            biases = [part.bias for part in self.apart if part.bias is not None]
            bias = joined(biases) if biases else None
            self.projections = (Dense(joined([part.weight for part in self.apart]), bias),)
            self.biases = () if bias is None else bias.view(3, -1, self.head_dim).unbind()

    def let_go(self) -> None:
        """Hold nothing but the parameters themselves."""
        self.projections = self.biases = ()

    def __call__(self, hidden: Tensor, layout: Layout, pooling: str | None = None) -> Tensor:
        """Return the block over hidden [tokens, hidden_size], with bias, residual and norm in one pass, bias and
        activation in another, and no copy of an activation but the one that a product writes.

        Args:
            pooling: "first" or "last": of each row this token alone, [rows, hidden_size], which nothing but keys and
                values needs the others for. None: all tokens.
        """
        attended = self._attend(hidden, layout)
        if pooling is not None:
            attended, hidden = (
                self.pool(features=each, cu_seqlens=layout.cu_seqlens, pooling=pooling) for each in (attended, hidden)
            )
        attended = self.end_attention(attended, hidden)
        return self.end(self.activate(attended), attended)

    def _attend(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return [tokens, heads * head_dim]: attention in front of its output product."""
        self.take()
        if self.joined_attention is not None:
            return self.joined_attention(hidden, *self.projections[0], self.biases, layout)
        shape = (hidden.shape[0], 3 // len(self.projections), -1, self.head_dim)
        projected = [linear(hidden, *dense).view(shape) for dense in self.projections]
        query, key, value = (part for each in projected for part in each.unbind(1))
        if self.tables is None:
            return ops.attention(query, key, value, layout, scaling=self.scaling, is_ours=True).flatten(1)
        size = (layout.max_seqlen, self.head_dim)
        return ops.disentangled_attention(
            query,
            key,
            value,
            layout,
            place_keys=self.tables.keys(self.place_key, *size),
            place_queries=self.tables.queries(self.place_query, *size),
            scaling=self.scaling,
        ).flatten(1)


def _product_and_norm(dense: nn.Linear, norm: nn.LayerNorm) -> Callable[[Tensor, Tensor], Tensor]:
    return bound.linear_add_norm(*Dense.of(dense), norm.weight, norm.bias, eps=norm.eps)
