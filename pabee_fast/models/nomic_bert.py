"""Nomic BERT: post-norm and gated, with rotary positions in place of learned ones."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from pabee_fast.models.rotary import RotaryFamily


class NomicBert(RotaryFamily):
    model_type = "nomic_bert"

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(self.backbone(model).layers)
