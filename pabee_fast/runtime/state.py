"""The state of rows under way, and the results they leave behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pabee_fast.layout import Layout
from pabee_fast.runtime import ops


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


class Piece(NamedTuple):
    """Rows of a wave whose layers are run apart from the others'."""

    tokens: slice
    layout: Layout


@dataclass
class Wave:
    """One packed batch on its way through the layers, with the state of its rows."""

    hidden: Tensor  # [tokens, hidden_size]
    layout: Layout
    state: ops.RowState
    alive: int  # rows that have not left, as far as the host knows
    beside: Mapping[str, Tensor] = field(default_factory=dict)  # each [tokens, ...]: see Family.beside
    unasked: int = 0  # layers at which rows may have left since the host asked
    is_never_compacted: bool = False
    pieces: Sequence[Piece] = ()  # of a list that has more tokens than are computed at once; (): the wave is in one

    @classmethod
    def start(
        cls, hidden: Tensor, layout: Layout, row_ids: Tensor, memory_words: int, beside: Mapping[str, Tensor]
    ) -> "Wave":
        """Return rows that no head has seen yet."""
        rows, device = len(row_ids), hidden.device
        state = ops.RowState(
            keep=torch.ones(rows, dtype=torch.int8, device=device),
            streak=torch.full((rows,), -1, dtype=torch.int32, device=device),
            memory=torch.zeros((rows, memory_words), dtype=torch.int32, device=device),
            row_ids=row_ids,
        )
        return cls(hidden, layout, state, rows, beside)

    @classmethod
    def join(cls, waves: "Sequence[Wave]") -> "Wave":
        """Lay waves of one run and one depth end to end."""
        if len(waves) == 1:
            return waves[0]
        first, layouts = waves[0], [wave.layout for wave in waves]
        before, ends = 0, [first.layout.cu_seqlens]
        for wave, following in pairwise(waves):
            before += wave.tokens
            ends.append(following.layout.cu_seqlens[1:] + before)
        key_mask, positions = (
            None if (of_first := getattr(first.layout, name)) is None
            else torch.cat([of_first, *(getattr(layout, name) for layout in layouts[1:])])
            for name in ("key_mask", "positions")
        )  # fmt: skip
        return cls(
            torch.cat([wave.hidden for wave in waves]),
            Layout(
                torch.cat(ends),
                max(layout.max_seqlen for layout in layouts),
                key_mask,
                positions,
                attention=first.layout.attention,
            ),
            ops.RowState(*map(torch.cat, zip(*(wave.state for wave in waves), strict=True))),
            sum(wave.alive for wave in waves),
            {name: torch.cat([wave.beside[name] for wave in waves]) for name in first.beside},
        )

    @property
    def tokens(self) -> int:
        """Of all rows that it holds, settled ones that were not dropped included."""
        return self.hidden.shape[0]

    def cut(self, ends: Sequence[int] | np.ndarray, most: int) -> None:
        """Let its layers run in pieces.

        Args:
            ends: [rows + 1] its `cu_seqlens`, on the host.
            most: tokens of a piece, unless one row has more.
        """
        whole, lengths = self.layout, np.diff(ends)
        pieces, first, rows = [], 0, len(lengths)
        while first < rows:
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + most, side="right")) - 1)
            tokens = slice(int(ends[first]), int(ends[last]))
            key_mask, positions = (None if mark is None else mark[tokens] for mark in (whole.key_mask, whole.positions))
            inside = whole.cu_seqlens[first : last + 1] - tokens.start
            longest = int(lengths[first:last].max())
            pieces.append(Piece(tokens, Layout(inside, longest, key_mask, positions, attention=whole.attention)))
            first = last
        self.pieces = pieces if len(pieces) > 1 else ()

    def through(self, layer: Callable[[Tensor, Layout, Mapping[str, Tensor]], Tensor]) -> Tensor:
        """Return what a layer makes of its hidden states, piece by piece."""
        parts = []
        for tokens, layout in self.pieces:
            beside = {name: values[tokens] for name, values in self.beside.items()}
            parts.append(layer(self.hidden[tokens], layout, beside))
        return torch.cat(parts)

    def unsettled(self) -> np.ndarray:
        """Return the `row_ids` of the rows that have not left, on the host; waits for the device."""
        return self.state.row_ids[self.state.keep != 0].cpu().numpy()

    def compact(self, plan: ops.Plan, rows: int, tokens: int, longest: int) -> "Wave":
        """Return the survivors alone, as `plan` lays them."""
        places, size = (plan.starts, plan.cu_seqlens), {"rows": rows, "tokens": tokens, "longest": longest}
        hidden, memory = ops.gather(self.hidden, *places, **size, memory=self.state.memory, sources=plan.sources)
        assert memory is not None
        state = ops.RowState(self.state.keep.new_ones(rows), plan.streak[:rows], memory, plan.row_ids[:rows])
        key_mask, positions = (
            None if values is None else ops.gather(values, *places, **size)[0]
            for values in (self.layout.key_mask, self.layout.positions)
        )
        layout = Layout(plan.cu_seqlens[: rows + 1], longest, key_mask, positions, attention=self.layout.attention)
        beside = {name: ops.gather(values, *places, **size)[0] for name, values in self.beside.items()}
        return Wave(hidden, layout, state, rows, beside)
