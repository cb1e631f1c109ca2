"""BERT: the post-norm encoder that the base class describes."""

from typing import Any

from pabee_fast.models.block import Block, bert_block
from pabee_fast.models.family import Family


class Bert(Family):
    model_type = "bert"

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        return (bert_block(layer),)
