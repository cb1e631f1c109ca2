"""MPNet: RoBERTa's positions and classifier, and a bias by relative place that all layers add to their attention."""

from typing import Any

import torch
from torch import Tensor
from transformers.models.mpnet.modeling_mpnet import create_position_ids_from_input_ids

from pabee_fast.layout import PaddedRows
from pabee_fast.models.family import DenseHeadFamily
from pabee_fast.models.padded import PaddedFamily


class MPNet(PaddedFamily, DenseHeadFamily):
    model_type = "mpnet"
    inputs = ("input_ids", "inputs_embeds", "position_ids")

    def position_ids(self, model: Any, input_ids: Tensor | None, shape: tuple[int, int]) -> Tensor:
        padding_idx = self.backbone(model).embeddings.padding_idx
        if input_ids is None:
            return super().position_ids(model, None, shape) + padding_idx + 1
        return create_position_ids_from_input_ids(input_ids, padding_idx)

    def max_length(self, model: Any) -> int:
        return super().max_length(model) - self.backbone(model).embeddings.padding_idx - 1

    def attend(self, model: Any, layer: Any, states: Tensor, rows: PaddedRows) -> Tensor:
        bias = rows.memo.get("bias")
        if bias is None:  # the same for all layers
            bias = rows.memo["bias"] = self.backbone(model).encoder.compute_position_bias(states[:1])
        hidden = ~rows.is_visible[:, None, None]
        mask = torch.zeros_like(hidden, dtype=states.dtype).masked_fill(hidden, torch.finfo(states.dtype).min)
        return layer.attention.attn(states, mask, bias)[0]

    def join(self, layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
        return layer.attention.LayerNorm(layer.attention.dropout(attended) + hidden)
