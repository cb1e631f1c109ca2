"""DeBERTa, v1 and v2 (v3 is v2's architecture): attention by content and by relative place, the two disentangled."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from pabee_fast.errors import UnsupportedError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.kernels.reference import ACTIVATIONS
from pabee_fast.layout import Layout, PaddedRows
from pabee_fast.models.block import Block, Places
from pabee_fast.models.head import CalledPooler, RowMap, pooler_of, through_pooler
from pabee_fast.models.padded import PaddedFamily


class Deberta(PaddedFamily):
    model_type = "deberta"

    def check(self, model: Any) -> None:
        super().check(model)
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


class DebertaV2(Deberta):
    """Its stock layers, as their owner has not changed them, run as blocks on packed rows; others padded, as v1's."""

    model_type = "deberta-v2"

    def behind(self, model: Any, layer: Any) -> Callable[[Tensor, Tensor, Layout], Tensor] | None:
        encoder = self.backbone(model).encoder
        if encoder.conv is None or layer is not encoder.layer[0]:
            return None
        return functools.partial(_convolved, encoder.conv, model.config.conv_kernel_size // 2)

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        attention, own = layer.attention, layer.attention.self
        met = [kind for kind in ("c2p", "p2c") if kind in own.pos_att_type]
        place_key, place_query = ("key_proj", "query_proj") if own.share_att_key else ("pos_key_proj", "pos_query_proj")
        return (
            Block(
                query=own.query_proj,
                key=own.key_proj,
                value=own.value_proj,
                output=attention.output.dense,
                attention_norm=attention.output.LayerNorm,
                up=layer.intermediate.dense,
                activation=layer.intermediate.intermediate_act_fn,
                down=layer.output.dense,
                norm=layer.output.LayerNorm,
                head_dim=own.attention_head_size,
                # Asked for counts, whether it is met or not: of a model without relative places as well.
                scaling=(own.attention_head_size * (1 + len(met))) ** -0.5,
                place_key=getattr(own, place_key) if own.relative_attention and "c2p" in met else None,
                place_query=getattr(own, place_query) if own.relative_attention and "p2c" in met else None,
            ),
        )

    def places(self, model: Any) -> Places | None:
        encoder = self.backbone(model).encoder
        return Places(encoder.get_rel_embedding, functools.partial(_lines, encoder))


def _convolved(conv: Any, reach: int, before: Tensor, after: Tensor, layout: Layout) -> Tensor:
    """Return `after` with what the module `conv` makes of `before` and its neighbours up to `reach` tokens away.

    The rows are one sequence to it, with room for zeros between them, which is what padding is to the stock model.
    """
    lengths, tokens = layout.cu_seqlens.diff(), before.shape[1]
    rows = torch.arange(len(lengths), device=before.device).repeat_interleave(lengths, output_size=tokens)
    places = torch.arange(tokens, device=before.device) + reach * rows
    size = tokens + reach * (len(lengths) - 1)
    spaced = [states.new_zeros(1, size, states.shape[2]).index_copy(1, places, states) for states in (before, after)]
    mask = torch.zeros(1, size, dtype=torch.int64, device=before.device)
    mask[:, places] = 1 if layout.key_mask is None else layout.key_mask.long()
    out: Tensor = conv(*spaced, mask)
    return out[:, places]


def _lines(encoder: Any, distances: np.ndarray) -> np.ndarray:
    """Return the lines of the encoder's embeddings for distances of a query from a key."""
    buckets, most, found = encoder.position_buckets, encoder.max_relative_positions, torch.from_numpy(distances)
    if buckets > 0 and most > 0:
        found = make_log_bucket_position(found, buckets, most)
    span = buckets if buckets > 0 else most
    return (found.long() + span).clamp(0, 2 * span - 1).numpy()
