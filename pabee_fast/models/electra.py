"""ELECTRA: embeddings may be narrower than the layers; the classifier has a dense layer of its own, with gelu."""

from typing import Any

from torch import Tensor

from pabee_fast.layout import Layout
from pabee_fast.models.block import Block, bert_block
from pabee_fast.models.family import DenseHeadFamily


class Electra(DenseHeadFamily):
    model_type = "electra"
    activation = "gelu"

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        hidden = super().embed(model, layout, **inputs)
        project = getattr(self.backbone(model), "embeddings_project", None)
        return hidden if project is None else project(hidden)

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        return (bert_block(layer),)
