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
        self._embeddings: Tensor | None = None
        self._made: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def clear(self) -> None:
        """Let go of everything: the run is over."""
        self._embeddings = None
        self._made.clear()

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
        weight, _ = dense
        wanted = self._places.lines(step * np.arange(1 - longest, longest))
        first, last = int(wanted[0]), int(wanted[-1])
        begin, projected = self._made.get((id(weight), step), (0, None))
        at = (wanted - begin) * step  # of each wanted line, among those that were projected
        if projected is None or at[0] < 0 or at[-1] >= len(projected):
            if self._embeddings is None:
                self._embeddings = self._places.embeddings()
            # Each line once, however many distances share it.
            [lines] = to_device([np.arange(first, last + step, step)], weight.device)
            begin, projected = first, linear(self._embeddings[lines], *dense)
            self._made[id(weight), step] = begin, projected
            at = (wanted - begin) * step
        if at[-1] - at[0] + 1 == len(at):
            return projected[int(at[0]) : int(at[-1]) + 1]
        [places] = to_device([at], projected.device)
        return projected[places]
