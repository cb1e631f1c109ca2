"""Decoders that classify by their last token: GPT-2, and Llama's relatives, whose sequence classifiers are one class.

Attention is causal, so a row ends with the token that the classifier reads: whatever comes after it changes nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pabee_fast.errors import InputError, UnsupportedError
from pabee_fast.layout import Layout
from pabee_fast.models.family import Family, word_embeddings
from pabee_fast.models.head import RowMap
from pabee_fast.models.rotary import RotaryFamily


class Decoder(Family):
    """What all of them share: the last token is read through the final norm by a linear without bias, `score`."""

    poolings = ("last", "mean")  # the first token of a causal model sees nothing but itself
    is_causal = True

    def check(self, model: Any) -> None:
        super().check(model)
        if getattr(model.config, "use_bidirectional_attention", False):
            raise UnsupportedError(
                "config.use_bidirectional_attention=True: this family is served as a causal decoder; set it to False "
                "if the model was trained so"
            )

    def pooling(self, model: Any) -> str:
        return "last"

    def kept(self, model: Any, input_ids: Tensor | None, visible: Tensor) -> Tensor:
        rows, length = visible.shape
        places = torch.arange(length, device=visible.device)
        pad = model.config.pad_token_id
        if pad is None and rows > 1:
            raise InputError(
                f"{rows} rows and config.pad_token_id=None: the model cannot tell where rows end; set "
                "model.config.pad_token_id = tokenizer.pad_token_id, or give rows one by one"
            )
        last = places.new_full((rows,), length - 1)
        if pad is not None and input_ids is not None:
            # As the stock model finds it: by the token, not by the mask; the first one where all are padding.
            last = torch.where(input_ids != pad, places, 0).amax(dim=1)
        return (visible & (places <= last[:, None])) | (places == last[:, None])

    def separates_texts(self, model: Any, use_cache: bool | None) -> bool:
        return not (self.backbone(model).config.use_cache if use_cache is None else use_cache)

    def norm(self, model: Any) -> RowMap | None:
        return self.backbone(model).norm

    def pooler(self, model: Any) -> None:
        return None

    def dropout(self, model: Any) -> nn.Module:
        return nn.Identity()

    def classifier(self, model: Any) -> nn.Linear:
        return model.score


class Gpt2(Decoder):
    model_type = "gpt2"

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        backbone = self.backbone(model)
        hidden = word_embeddings(backbone.wte, inputs) + backbone.wpe(inputs["position_ids"])
        if "token_type_ids" in inputs:
            hidden = hidden + backbone.wte(inputs["token_type_ids"])
        return hidden[None]

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(self.backbone(model).h)

    def norm(self, model: Any) -> RowMap | None:
        return self.backbone(model).ln_f


class Llama(Decoder, RotaryFamily):
    model_type = "llama"
    inputs = ("input_ids", "inputs_embeds", "position_ids")

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        return word_embeddings(self.backbone(model).embed_tokens, inputs)[None]


class Mistral(Llama):
    model_type = "mistral"

    def windows(self, model: Any) -> Iterator[tuple[int | None, int | None]]:
        backbone = self.backbone(model)
        for layer in backbone.layers:
            yield layer.self_attn.config.sliding_window, backbone.config.sliding_window


class Qwen2(Llama):
    model_type = "qwen2"

    def windows(self, model: Any) -> Iterator[tuple[int | None, int | None]]:
        backbone = self.backbone(model)
        now = {"sliding_attention": backbone.config.sliding_window}
        for kind, layer in zip(backbone.config.layer_types, backbone.layers, strict=False):
            yield layer.self_attn.sliding_window, now.get(kind)


class Qwen3(Qwen2):
    model_type = "qwen3"


class Gemma(Llama):
    model_type = "gemma"
