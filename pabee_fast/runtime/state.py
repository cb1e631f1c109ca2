"""The state of rows under way, and the results they leave behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pabee_fast.runtime import ops
from pabee_fast.runtime.packed import Layout


@dataclass
class Results:
    """What rows answered, in input order."""

    logits: Tensor  # [rows, classes] float32
    exit_layers: Tensor  # [rows] int64, 1-based number of layers a row was given

    @classmethod
    def empty(cls, rows: int, classes: int, device: torch.device) -> "Results":
        """NaN and 0 until a row leaves, so that a row that was never written cannot pass for an answer."""
        logits = torch.full((rows, classes), float("nan"), dtype=torch.float32, device=device)
        return cls(logits, torch.zeros(rows, dtype=torch.int64, device=device))


@dataclass
class Wave:
    """One packed batch on its way through the layers, with the state of its rows."""

    hidden: Tensor  # [1, tokens, hidden_size]
    layout: Layout
    state: ops.RowState
    beside: Mapping[str, Tensor] = field(default_factory=dict)  # each [tokens, ...]: see Family.beside

    @classmethod
    def start(
        cls, hidden: Tensor, layout: Layout, row_ids: Tensor, memory_words: int, beside: Mapping[str, Tensor]
    ) -> "Wave":
        """Rows that no head has seen yet."""
        rows, device = len(row_ids), hidden.device
        state = ops.RowState(
            keep=torch.ones(rows, dtype=torch.int8, device=device),
            streak=torch.full((rows,), -1, dtype=torch.int32, device=device),
            memory=torch.zeros((rows, memory_words), dtype=torch.int32, device=device),
            row_ids=row_ids,
        )
        return cls(hidden, layout, state, beside)

    def plan(self) -> ops.Plan:
        """Where the survivors would go."""
        return ops.plan(self.state.keep, self.layout.cu_seqlens, self.state.row_ids, self.state.streak)

    def compact(self, plan: ops.Plan, rows: int, tokens: int, longest: int) -> "Wave":
        """The survivors alone, as `plan` lays them."""
        places, size = (plan.starts, plan.cu_seqlens), {"rows": rows, "tokens": tokens, "longest": longest}
        hidden, memory = ops.gather(self.hidden[0], *places, **size, memory=self.state.memory, sources=plan.sources)
        assert memory is not None
        state = ops.RowState(self.state.keep.new_ones(rows), plan.streak[:rows], memory, plan.row_ids[:rows])
        key_mask, positions = (
            None if values is None else ops.gather(values, *places, **size)[0]
            for values in (self.layout.key_mask, self.layout.positions)
        )
        layout = Layout(plan.cu_seqlens[: rows + 1], longest, key_mask, positions, self.layout.attention)
        beside = {name: ops.gather(values, *places, **size)[0] for name, values in self.beside.items()}
        return Wave(hidden[None], layout, state, beside)
