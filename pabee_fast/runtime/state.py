"""The state of rows under way, and the results they leave behind."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pabee_fast.policies import AnswerKind
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
    row_ids: Tensor  # [rows] int64, where a row's results go
    keep: Tensor  # [rows] int8, 1 while a row is being computed
    streak: Tensor  # [rows] int32, -1 before the first answer
    answer: Tensor  # [rows, words] int32

    @classmethod
    def start(cls, hidden: Tensor, layout: Layout, row_ids: Tensor, kind: AnswerKind, classes: int) -> "Wave":
        """Rows that no head has seen yet."""
        rows, device = len(row_ids), hidden.device
        return cls(
            hidden,
            layout,
            row_ids,
            keep=torch.ones(rows, dtype=torch.int8, device=device),
            streak=torch.full((rows,), -1, dtype=torch.int32, device=device),
            answer=torch.zeros((rows, ops.answer_words(kind, classes)), dtype=torch.int32, device=device),
        )

    @property
    def starts(self) -> Tensor:
        """[rows] int32: a row's first token, which its head reads."""
        return self.layout.cu_seqlens[:-1]

    def plan(self) -> ops.Plan:
        """Where the survivors would go."""
        return ops.plan(self.keep, self.layout.cu_seqlens, self.row_ids, self.streak, self.answer)

    def compact(self, plan: ops.Plan, rows: int, tokens: int, longest: int) -> "Wave":
        """The survivors alone, as `plan` lays them."""
        size = {"rows": rows, "tokens": tokens, "longest": longest}
        mask = self.layout.key_mask
        return Wave(
            hidden=ops.gather(self.hidden[0], plan.starts, plan.cu_seqlens, **size)[None],
            layout=Layout(
                plan.cu_seqlens[: rows + 1],
                longest,
                None if mask is None else ops.gather(mask, plan.starts, plan.cu_seqlens, **size),
            ),
            row_ids=plan.row_ids[:rows],
            keep=self.keep.new_ones(rows),
            streak=plan.streak[:rows],
            answer=plan.answer[:rows],
        )
