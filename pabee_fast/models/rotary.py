"""Families whose layers take rotary position embeddings: cosines and sines of every token, computed once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pabee_fast.errors import UnsupportedError
from pabee_fast.layout import Layout
from pabee_fast.models.family import Family, call_layer

ROTARY = "rotary"


def check_rotary(config: Any) -> None:
    """Raise UnsupportedError where the frequencies depend on the longest row of a batch, and so on batch-mates."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    for kind in [parameters.get("rope_type"), *(value.get("rope_type") for value in nested)]:
        if kind in ("dynamic", "longrope"):
            raise UnsupportedError(
                f"rope_type={kind!r}: its frequencies depend on the longest row of a batch, so a row's answer would "
                "depend on its batch-mates; load the model with another rope_type"
            )


def cosines_and_sines(pair: tuple[Tensor, Tensor]) -> Tensor:
    """Return what a rotary module gives for [1, tokens] positions as [tokens, 2, head_dim], so that it moves in one
    piece."""
    return torch.stack(pair, dim=2)[0]


class RotaryFamily(Family):
    """One kind of rotary embedding for all layers, by the backbone's `rotary_emb`."""

    def check(self, model: Any) -> None:
        super().check(model)
        check_rotary(model.config)

    def has_position_table(self, model: Any) -> bool:
        return False

    def layers(self, model: Any) -> Sequence[nn.Module]:
        backbone = self.backbone(model)
        return list(backbone.layers)[: backbone.config.num_hidden_layers]  # the stock forward leaves others out

    def beside(self, model: Any, hidden: Tensor, position_ids: Tensor) -> Mapping[str, Tensor]:
        return {ROTARY: cosines_and_sines(self.backbone(model).rotary_emb(hidden, position_ids[None]))}

    def run_layer(self, model: Any, layer: Any, hidden: Tensor, layout: Layout, beside: Mapping[str, Tensor]) -> Tensor:
        return call_layer(layer, hidden, layout, position_embeddings=beside[self.rotary_of(layer)][None].unbind(2))

    def rotary_of(self, layer: Any) -> str:
        """Return the name among `beside` of the embeddings that a layer takes."""
        return ROTARY
