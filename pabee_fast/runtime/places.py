"""What relative places are to each layer: projections of the same embeddings whatever the tokens are, made once a run.

Stock layers make them anew for every batch and of all distances there could be. Here those of a run's longest row serve
all its waves. They are let go of when it ends, since what a weight holds may change between runs without a trace.
"""

import numpy as np
from torch import Tensor
from torch.nn.functional import linear

from pabee_fast.models.block import Places
from pabee_fast.transfer import to_device

Dense = tuple[Tensor, Tensor | None]
"""A linear layer's weight and bias."""


class PlaceTables:
    """The tables of one model's layers, as `kernels.reference.disentangled_attention` reads them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.clear()

    def clear(self) -> None:
        """Let go of everything: the run is over."""
        self._longest = 0  # tokens of the row that the tables reach
        self._embeddings: dict[int, Tensor] = {}
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._taken: dict[tuple[int, int], slice | Tensor] = {}

    def keys(self, dense: Dense | None, longest: int, head_dim: int) -> Tensor | None:
        """Return what queries meet, [2 * longest - 1, heads, head_dim]: the line of a key's place less the query's.

        Args:
            dense: the layer's projection of places to keys; None gives None.
            longest: tokens of the longest row.
            head_dim: numbers of a head.
        """
        return None if dense is None else self._table(dense, longest, -1).unflatten(1, (-1, head_dim))

    def queries(self, dense: Dense | None, longest: int, head_dim: int) -> Tensor | None:
        """Return what keys meet, likewise: the line of a query's place less the key's."""
        return None if dense is None else self._table(dense, longest, 1).unflatten(1, (-1, head_dim))

    def _table(self, dense: Dense, longest: int, step: int) -> Tensor:
        """Return [2 * longest - 1, width], by the distance of a query from a key, which rises or falls by `step`."""
        if longest > self._longest:  # seldom but at a run's begin, since longer rows go first
            self.clear()
            self._longest = longest
        weight, _ = dense
        if (table := self._tables.get((id(weight), step))) is None:
            table = self._tables[id(weight), step] = linear(self._embedded(step), *dense)
        if (taken := self._taken.get((longest, step))) is None:
            places = (self._lines(longest, step) - self._lines(self._longest, step)[0]) * step
            if places[-1] - places[0] + 1 == len(places):
                taken = slice(int(places[0]), int(places[-1]) + 1)
            else:  # distances that share a line
                [taken] = to_device([places], weight.device)
            self._taken[longest, step] = taken
        return table[taken]

    def _embedded(self, step: int) -> Tensor:
        """Return the embeddings, each line once, from the first to the last that the longest row needs."""
        if step not in self._embeddings:
            every, lines = self._places.embeddings(), self._lines(self._longest, step)
            [indices] = to_device([np.arange(lines[0], lines[-1] + step, step)], every.device)
            self._embeddings[step] = every[indices]
        return self._embeddings[step]

    def _lines(self, longest: int, step: int) -> np.ndarray:
        return self._places.lines(step * np.arange(1 - longest, longest))
