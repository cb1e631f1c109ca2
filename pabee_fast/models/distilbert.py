"""DistilBERT: no token types, and a pooler that is part of the classifier, with relu."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from pabee_fast.kernels.checks import Pooler
from pabee_fast.models.block import Block
from pabee_fast.models.family import Family
from pabee_fast.models.head import RowMap, pooler_of


class DistilBert(Family):
    model_type = "distilbert"
    inputs = ("input_ids", "inputs_embeds", "position_ids")

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(self.backbone(model).transformer.layer)

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        attention, ffn = layer.attention, layer.ffn
        return (
            Block(
                query=attention.q_lin,
                key=attention.k_lin,
                value=attention.v_lin,
                output=attention.out_lin,
                attention_norm=layer.sa_layer_norm,
                up=ffn.lin1,
                activation=ffn.activation,
                down=ffn.lin2,
                norm=layer.output_layer_norm,
                head_dim=attention.attention_head_size,
                scaling=attention.scaling,
            ),
        )

    def pooler(self, model: Any) -> Pooler | RowMap:
        return pooler_of(model.pre_classifier, "relu")
