"""RoBERTa: positions start after padding_idx and skip padding; the classifier brings its own dense layer as pooler."""

from typing import Any

import torch
from torch import Tensor, nn

from pabee_fast.models.family import Family
from pabee_fast.runtime.ops import Pooler


class Roberta(Family):
    model_type = "roberta"

    def position_ids(self, model: Any, input_ids: Tensor | None, shape: tuple[int, int]) -> Tensor:
        embeddings = self.backbone(model).embeddings
        if input_ids is None:
            return super().position_ids(model, None, shape) + embeddings.padding_idx + 1
        return embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)

    def max_length(self, model: Any) -> int:
        return super().max_length(model) - self.backbone(model).embeddings.padding_idx - 1

    def pooler(self, model: Any) -> Pooler:
        dense = model.classifier.dense
        return Pooler(dense.weight, dense.bias, "tanh")

    def pooled(self, model: Any, first: Tensor) -> Tensor:
        head = model.classifier
        return head.dropout(torch.tanh(head.dense(head.dropout(first))))

    def dropout(self, model: Any) -> nn.Module:
        return model.classifier.dropout

    def classifier(self, model: Any) -> nn.Linear:
        return model.classifier.out_proj
