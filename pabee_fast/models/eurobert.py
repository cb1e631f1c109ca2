"""EuroBERT: Llama's layers without the causal mask, and three ways to pool."""

from typing import Any

from torch import Tensor, nn

from pabee_fast.kernels.checks import Pooler
from pabee_fast.layout import Layout
from pabee_fast.models.family import word_embeddings
from pabee_fast.models.head import RowMap, pooler_of
from pabee_fast.models.rotary import RotaryFamily


class EuroBert(RotaryFamily):
    model_type = "eurobert"
    inputs = ("input_ids", "inputs_embeds", "position_ids")

    def pooling(self, model: Any) -> str:
        return "first" if model.classifier_pooling == "bos" else "mean"

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        return word_embeddings(self.backbone(model).embed_tokens, inputs)[None]

    def norm(self, model: Any) -> RowMap:
        if model.classifier_pooling == "late":
            # Dense layer, activation and classifier run on every token there, and the mean is over logits. A linear
            # layer's mean is the linear layer of the mean, so only the first two need every token.
            return nn.Sequential(self.backbone(model).norm, model.dense, model.activation)
        return self.backbone(model).norm

    def pooler(self, model: Any) -> Pooler | RowMap | None:
        if model.classifier_pooling == "late":
            return None
        return pooler_of(model.dense, "gelu")

    def dropout(self, model: Any) -> nn.Module:
        return nn.Identity()
