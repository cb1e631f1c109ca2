"""Vision transformers: a row is an image, its tokens are one or two special ones and the patches."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pabee_fast.errors import InputError
from pabee_fast.layout import Layout
from pabee_fast.models.family import Family
from pabee_fast.models.head import RowMap


class Vit(Family):
    model_type = "vit"
    class_names = "ForImageClassification"
    inputs = ("pixel_values",)

    def image_tokens(self, model: Any, pixel_values: Tensor) -> int:
        """Return how many tokens each image of a batch becomes.

        Raises:
            InputError: another shape than the model was made for.
        """
        patches = self.backbone(model).embeddings.patch_embeddings
        expected = (patches.num_channels, *patches.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise InputError(
                f"pixel_values is {list(pixel_values.shape)}: give [rows, channels, height, width], here "
                f"{['rows', *expected]}; the model's own image processor does"
            )
        return self.max_length(model)

    def max_length(self, model: Any) -> int:
        return self.backbone(model).embeddings.position_embeddings.shape[1]

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        embeddings = self.backbone(model).embeddings
        pixels = inputs["pixel_values"].to(embeddings.patch_embeddings.projection.weight.dtype)
        return embeddings(pixels).flatten(0, 1)[None]

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(self.backbone(model).layers)

    def norm(self, model: Any) -> RowMap | None:
        return self.backbone(model).layernorm

    def pooler(self, model: Any) -> None:
        return None

    def dropout(self, model: Any) -> nn.Module:
        return nn.Identity()


class Deit(Vit):
    model_type = "deit"
