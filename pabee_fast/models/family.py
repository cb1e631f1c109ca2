"""What a model family looks like to the runtime: embed, layers, pooled feature, classifier.

A family is stateless; its methods take the Hugging Face model, as `Any`, since its parts are named dynamically. This
module holds the post-norm encoders' common shape, and a family's own file only what differs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pabee_fast.errors import UnsupportedError
from pabee_fast.runtime.ops import ACTIVATIONS, Pooler


class Head(NamedTuple):
    """What the exit step asks after one layer: a linear over what it reads of a row."""

    linear: nn.Linear
    pooling: str
    """Which tokens of a row it reads: "first", "last" or "mean"."""
    pooler: Pooler | None
    """What stands between those and the linear."""


class Family:
    """A post-norm encoder with a pooler over the first token, as BERT; the base of the others."""

    model_type = ""
    pooling = "first"
    """Which tokens of a row the model's own classifier reads."""

    def check(self, model: Any) -> None:
        """Raises UnsupportedError for a variant whose layers mean something else when packed."""
        config = model.config
        for name in ("is_decoder", "add_cross_attention"):
            if getattr(config, name, False):
                raise UnsupportedError(f"config.{name}=True: early exit serves encoders; load it as an encoder")
        if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
            raise UnsupportedError(
                f"config.position_embedding_type={config.position_embedding_type!r}: only 'absolute' is supported"
            )

    def backbone(self, model: Any) -> Any:
        """The module that holds embeddings and encoder."""
        return model.base_model

    def position_ids(self, model: Any, input_ids: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Positions in the padded layout, [rows, length] int64, as the stock model numbers them; `shape` is that
        layout's, `input_ids` are None where the caller gives embeddings."""
        device = input_ids.device if input_ids is not None else None
        return torch.arange(shape[1], device=device).expand(shape)

    def max_length(self, model: Any) -> int:
        """The most tokens that a row may have."""
        return model.config.max_position_embeddings

    def embed(self, model: Any, **inputs: Tensor) -> Tensor:
        """The hidden states that enter layer 1, [1, tokens, hidden_size], of packed inputs [1, tokens]."""
        return self.backbone(model).embeddings(**inputs)

    def layers(self, model: Any) -> Sequence[nn.Module]:
        """The layers in order, a shared one repeated; each maps [1, tokens, hidden_size] to the same shape."""
        return list(self.backbone(model).encoder.layer)

    def pooler(self, model: Any) -> Pooler:
        """What stands between a row's first token and any head."""
        pooler = self.backbone(model).pooler
        return Pooler(pooler.dense.weight, pooler.dense.bias, "tanh")

    def pooled(self, model: Any, first: Tensor) -> Tensor:
        """The heads' input for training, [rows, hidden_size], with the stock model's dropout, from first tokens."""
        weight, bias, activation = self.pooler(model)
        return self.dropout(model)(ACTIVATIONS[activation](nn.functional.linear(first, weight, bias)))

    def dropout(self, model: Any) -> nn.Module:
        """What the stock model applies in front of its classifier in training."""
        return model.dropout

    def classifier(self, model: Any) -> nn.Linear:
        """The model's own classifier, which is the last head."""
        return model.classifier

    def layer_outputs(self, model: Any, hidden_states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One [rows, length, hidden_size] a layer, out of the stock model's `hidden_states`."""
        return hidden_states[1:]
