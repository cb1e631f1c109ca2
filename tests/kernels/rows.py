"""A few rows under way, for tests that say what the exit step means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import ExitHead, ExitRows, ExitRule, RowState

NAN, INF = float("nan"), float("inf")
UNWRITTEN = -7


@dataclass
class Rows:
    """A few rows under way whose head is the identity, so that features are logits."""

    classes: int
    state: RowState
    logits: Tensor
    exit_layers: Tensor
    layer: int = 0

    @classmethod
    def fresh(cls, rows: int, classes: int, words: int = 1, row_ids: list[int] | None = None) -> "Rows":
        results = rows + 2
        return cls(
            classes=classes,
            state=RowState(
                keep=torch.ones(rows, dtype=torch.int8),
                streak=torch.full((rows,), -1, dtype=torch.int32),
                memory=torch.zeros((rows, words), dtype=torch.int32),
                row_ids=torch.tensor(range(rows) if row_ids is None else row_ids, dtype=torch.int64),
            ),
            logits=torch.full((results, classes), NAN),
            exit_layers=torch.full((results,), UNWRITTEN),
        )

    def give(
        self, logits: Sequence[Sequence[float]], *, kind: str = "label", rule: str = "agreement", **options: Any
    ) -> None:
        """Give every row one more layer, whose head answers `logits`."""
        self.layer += 1
        features = torch.tensor(logits, dtype=torch.float32).view(-1, self.classes)
        reference.exit_step(
            ExitRows(features, self.state, self.logits, self.exit_layers),
            ExitHead(torch.eye(self.classes)),
            ExitRule(**{"kind": kind, "name": rule, "layer": self.layer, "last": 999, "patience": 99} | options),
        )

    @property
    def keep(self) -> Tensor:
        return self.state.keep

    @property
    def streak(self) -> Tensor:
        return self.state.streak

    @property
    def memory(self) -> Tensor:
        return self.state.memory
