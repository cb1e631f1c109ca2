"""ModernBERT: pre-norm, local and global attention with rotary positions of two bases, a final norm, its own head."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pabee_fast.layout import Layout
from pabee_fast.models.head import RowMap
from pabee_fast.models.rotary import RotaryFamily, cosines_and_sines


class ModernBert(RotaryFamily):
    model_type = "modernbert"
    inputs = ("input_ids", "inputs_embeds", "position_ids")

    def pooling(self, model: Any) -> str:
        return {"cls": "first", "mean": "mean"}[model.config.classifier_pooling]

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        del inputs["position_ids"]
        return super().embed(model, layout, **inputs)

    def beside(self, model: Any, hidden: Tensor, position_ids: Tensor) -> Mapping[str, Tensor]:
        rotary = self.backbone(model).rotary_emb
        return {
            kind: cosines_and_sines(rotary(hidden, position_ids[None], kind)) for kind in set(model.config.layer_types)
        }

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(self.backbone(model).layers)  # all of them, whatever the config counts

    def windows(self, model: Any) -> Iterator[tuple[int | None, int | None]]:
        backbone = self.backbone(model)
        now = {"sliding_attention": backbone.config.sliding_window + 1}
        for layer in backbone.layers:
            yield layer.attn.sliding_window, now.get(layer.attention_type)

    def rotary_of(self, layer: Any) -> str:
        return layer.attention_type

    def norm(self, model: Any) -> RowMap:
        return self.backbone(model).final_norm

    def pooler(self, model: Any) -> RowMap:
        return model.head

    def dropout(self, model: Any) -> nn.Module:
        return model.drop
