"""DistilBERT: no token types, and a pooler that is part of the classifier, with relu."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from pabee_fast.models.family import Family
from pabee_fast.runtime.ops import Pooler


class DistilBert(Family):
    model_type = "distilbert"
    inputs = ("input_ids", "inputs_embeds", "position_ids")

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(self.backbone(model).transformer.layer)

    def pooler(self, model: Any) -> Pooler:
        return Pooler(model.pre_classifier.weight, model.pre_classifier.bias, "relu")
