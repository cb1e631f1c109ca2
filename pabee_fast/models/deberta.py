"""DeBERTa, v1 and v2 (v3 is v2's architecture): attention by content and by relative place, the two disentangled."""

from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN

from pabee_fast.errors import UnsupportedError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.kernels.reference import ACTIVATIONS
from pabee_fast.layout import Layout, PaddedRows
from pabee_fast.models.head import CalledPooler, RowMap, pooler_of, through_pooler
from pabee_fast.models.padded import PaddedFamily


class DebertaV2(PaddedFamily):
    model_type = "deberta-v2"

    def check(self, model: Any) -> None:
        super().check(model)
        if getattr(self.backbone(model).encoder, "conv", None) is not None:
            raise UnsupportedError(
                f"config.conv_kernel_size={model.config.conv_kernel_size}: DeBERTa's convolution over neighbouring "
                "tokens is not served; a model without it is"
            )
        if self.backbone(model).z_steps > 1:
            raise UnsupportedError(f"z_steps={self.backbone(model).z_steps}: the last layer would run several times")

    def has_position_table(self, model: Any) -> bool:
        return self.backbone(model).embeddings.position_embeddings is not None

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        hidden = super().embed(model, layout, **inputs)
        return hidden if layout.key_mask is None else hidden * layout.key_mask[:, None]

    def attend(self, model: Any, layer: Any, states: Tensor, rows: PaddedRows) -> Tensor:
        encoder, memo = self.backbone(model).encoder, rows.memo
        if not memo:  # the same for all layers
            memo["mask"] = encoder.get_attention_mask(rows.is_visible)
            memo["places"], memo["embeddings"] = encoder.get_rel_pos(states), encoder.get_rel_embedding()
        attended, _ = layer.attention.self(
            states, memo["mask"], relative_pos=memo["places"], rel_embeddings=memo["embeddings"]
        )
        return attended

    def join(self, layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
        return layer.attention.output(attended, hidden)

    def pooler(self, model: Any) -> Pooler | RowMap:
        dense, activation = model.pooler.dense, model.config.pooler_hidden_act
        if activation in ACTIVATIONS:
            return pooler_of(dense, activation)
        if activation not in ACT2FN:
            raise UnsupportedError(f"config.pooler_hidden_act={activation!r}: transformers has no such function")
        return CalledPooler(dense, ACT2FN[activation])

    def pooled(self, model: Any, tokens: Tensor) -> Tensor:
        return self.dropout(model)(through_pooler(self.pooler(model), model.pooler.dropout(tokens)))


class Deberta(DebertaV2):
    model_type = "deberta"
