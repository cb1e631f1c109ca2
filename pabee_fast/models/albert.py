"""ALBERT: layers share weights in groups, embeddings are narrower than the layers, the pooler is a bare linear."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pabee_fast.kernels.checks import Pooler
from pabee_fast.layout import Layout
from pabee_fast.models.block import Block
from pabee_fast.models.family import Family
from pabee_fast.models.head import RowMap, pooler_of


class Albert(Family):
    model_type = "albert"

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        return self.backbone(model).encoder.embedding_hidden_mapping_in(super().embed(model, layout, **inputs))

    def layers(self, model: Any) -> Sequence[nn.Module]:
        encoder = self.backbone(model).encoder
        layers, groups = encoder.config.num_hidden_layers, encoder.albert_layer_groups
        # The stock forward picks the group by the same truncated division.
        return [groups[int(i / (layers / len(groups)))] for i in range(layers)]

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        return tuple(
            Block(
                query=inner.attention.query,
                key=inner.attention.key,
                value=inner.attention.value,
                output=inner.attention.dense,
                attention_norm=inner.attention.LayerNorm,
                up=inner.ffn,
                activation=inner.activation,
                down=inner.ffn_output,
                norm=inner.full_layer_layer_norm,
                head_dim=inner.attention.attention_head_size,
                scaling=inner.attention.scaling,
            )
            for inner in layer.albert_layers
        )

    def pooler(self, model: Any) -> Pooler | RowMap:
        return pooler_of(self.backbone(model).pooler, "tanh")

    def layer_outputs(self, model: Any, hidden_states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A group of several inner layers is one layer of the published model, and records one state for each.
        inner = model.config.inner_group_num
        return hidden_states[inner::inner]
