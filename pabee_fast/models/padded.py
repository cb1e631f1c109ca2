"""Families whose own attention cannot run on packed tokens, since it measures distances inside a padded row.

A layer's dense parts still run on the packed tokens; only its attention is padded, in sub-batches of rows of similar
length. A row keeps the hidden tokens between its visible ones, so that places in it are those of the padded layout.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pabee_fast.layout import Layout, PaddedRows
from pabee_fast.models.family import Family


class PaddedFamily(Family):
    """Layers of BERT's build, `attention`, `intermediate` and `output`, whose attention is called padded."""

    def kept(self, model: Any, input_ids: Tensor | None, visible: Tensor) -> Tensor:
        length = visible.shape[1]
        places = torch.arange(length, device=visible.device)
        last = torch.where(visible, places, 0).amax(dim=1)
        # What a hidden first token becomes may depend on all the padding beside it, and the heads read it.
        last = torch.where(visible[:, 0], last, length - 1)
        return places <= last[:, None]

    def run_layer(self, model: Any, layer: Any, hidden: Tensor, layout: Layout, beside: Mapping[str, Tensor]) -> Tensor:
        attended = torch.empty_like(hidden[0])
        for rows in layout.padded_rows:
            states = self.attend(model, layer, hidden[0][rows.where], rows)
            attended[rows.tokens] = states.flatten(0, 1)[rows.back].to(attended.dtype)
        attention_output = self.join(layer, attended[None], hidden)
        return layer.output(layer.intermediate(attention_output), attention_output)

    def called(self, layer: Any) -> tuple[nn.Module, ...]:
        return (*layer.attention.children(), layer.intermediate, layer.output)

    def attend(self, model: Any, layer: Any, states: Tensor, rows: PaddedRows) -> Tensor:
        """Return attention over padded rows, [rows, length, hidden_size] to the same shape, without residual and
        norm."""
        raise NotImplementedError

    def join(self, layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
        """Return what the rest of the layer reads: attention's output with residual and norm, [1, tokens,
        hidden_size]."""
        raise NotImplementedError
