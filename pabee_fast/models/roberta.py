"""RoBERTa and the models that only change its vocabulary: positions start after padding_idx and skip padding."""

from typing import Any

from torch import Tensor

from pabee_fast.errors import UnsupportedError
from pabee_fast.models.block import Block, bert_block
from pabee_fast.models.family import DenseHeadFamily


class Roberta(DenseHeadFamily):
    model_type = "roberta"

    def position_ids(self, model: Any, input_ids: Tensor | None, shape: tuple[int, int]) -> Tensor:
        embeddings = self.backbone(model).embeddings
        if input_ids is None:
            return super().position_ids(model, None, shape) + embeddings.padding_idx + 1
        return embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)

    def max_length(self, model: Any) -> int:
        padding_idx = self.backbone(model).embeddings.padding_idx
        if padding_idx is None:
            raise UnsupportedError("config.pad_token_id is None: positions are numbered from it; give the tokenizer's")
        return super().max_length(model) - padding_idx - 1

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        return (bert_block(layer),)


class XlmRoberta(Roberta):
    model_type = "xlm-roberta"


class Camembert(Roberta):
    model_type = "camembert"
