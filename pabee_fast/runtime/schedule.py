"""What runs when: the cut into waves, which of them is next, and whether a compaction pays. Plain arithmetic, no torch.

The engine drives it with waves, `bench.simulate` with nothing but token counts.
"""

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from pabee_fast.errors import InputError

WORTHWHILE = 1.0
"""Of the budget: waves of one depth wait until so many tokens have come together, while rows are left to begin. Of a
quarter to the whole, the whole is simulated best for BERT-base (exit efficiency of skewed exits 0.009 above that of a
quarter) and within 0.003 of the best for large (`python -m bench.simulate --worthwhile ...`)."""

GATHER_COST = 0.03
"""Moving a survivor's token, in layers: 2 * hidden_size * itemsize bytes against 24 * hidden_size^2 FLOP, by the rates
of an H200 and BERT-base's hidden size. An estimate; a CPU, which multiplies slowly, has it lower."""


SELDOM = 3
"""Layers of a small wave from one question to the next: asking takes the host a sixth of a layer's launches
(`bench.host`) and then a wait, and the layers after a last row's exit are in vain. An estimate."""


class Order(NamedTuple):
    """The rows of a batch, the longest first, equal ones as they came."""

    rows: np.ndarray  # [rows] int64
    ends: np.ndarray  # [rows] int64: running sums of their lengths

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Order":
        """Sort rows by their lengths, [rows]."""
        rows = _in_order(-lengths)
        return cls(rows, np.cumsum(lengths[rows]))


def plan_waves(
    lengths: np.ndarray, token_budget: int, longest_row: int | None = None, order: Order | None = None
) -> list[np.ndarray]:
    """Cut rows into waves of at most `token_budget` tokens, longest rows first, rows of one length side by side.

    A pure function of its arguments, so that a resumed job repeats its waves. Longest first, so that memory that does
    not suffice shows at once.

    Args:
        lengths: [rows] tokens of each row.
        token_budget: the most tokens a wave holds.
        longest_row: the most tokens of a row; one longer than the budget is a wave of its own. None: the budget.
        order: of the lengths, where it is known.

    Returns:
        For each wave the indices of its rows, int64.

    Raises:
        InputError: a row is longer than that.
    """
    if len(lengths) == 0:
        return []
    longest_row = token_budget if longest_row is None else longest_row
    if lengths.max() > longest_row:
        raise InputError(
            f"token_budget={longest_row}, but row {int(lengths.argmax())} has {int(lengths.max())} tokens: "
            "raise the budget, or truncate rows to it (max_length)"
        )
    rows, ends = Order.of(lengths) if order is None else order
    waves, first, spent = [], 0, 0
    while first < len(rows):
        last = max(first + 1, int(np.searchsorted(ends, spent + token_budget, side="right")))
        waves.append(rows[first:last])
        first, spent = last, int(ends[last - 1])
    return waves


def plan_lists(
    lengths: np.ndarray, lists: np.ndarray, token_budget: int, longest_row: int, order: Order | None = None
) -> list[np.ndarray]:
    """Cut rows into waves of whole lists, as `plan_waves` cuts them one by one; one list of more tokens than the budget
    is a wave of its own, to be run in pieces.

    Args:
        lists: [rows] which list each row belongs to, from 0.
        order: as for `plan_waves`.

    Raises:
        InputError: a row is longer than `longest_row`.
    """
    if len(lengths) == 0:
        return []
    if lengths.max() > longest_row:
        return plan_waves(lengths, token_budget, longest_row)  # which refuses it
    numbers, index = np.unique(lists, return_inverse=True)
    waves = plan_waves(np.bincount(index, weights=lengths, minlength=len(numbers)), token_budget, sys.maxsize)
    place = np.empty(len(numbers), np.int64)  # of a list: its wave
    for number, members in enumerate(waves):
        place[members] = number
    rows, _ = Order.of(lengths) if order is None else order
    rows = rows[_in_order(place[index][rows])]  # by waves, of a wave longest rows first
    return np.split(rows, np.cumsum(np.bincount(place[index]))[:-1])


def _in_order(numbers: np.ndarray) -> np.ndarray:
    """Return the indices that sort whole numbers, equal ones as they came.

    NumPy sorts 16 bits by radix: 32,768 lengths seven times as fast as 64 bits."""
    if len(numbers) and numbers.max() - (least := numbers.min()) < 2**16:
        numbers = (numbers - least).astype(np.uint16)
    return np.argsort(numbers, kind="stable")


@dataclass(frozen=True)
class Costs:
    """What decides whether settled rows are dropped, and how often it is asked whether there are any.

    Args:
        gather: cost of moving one token, in its layers; 0 drops whenever a row has left.
        least_tokens: a wave of fewer is through a layer no sooner, since its launches take the host as long.
    """

    gather: float = GATHER_COST
    least_tokens: float = 0.0

    def pays(self, tokens: int, kept: int, layers_left: int) -> bool:
        """Return whether compaction saves more than it costs: tokens dropped over the layers to come, against those
        that are moved."""
        saved = max(tokens, self.least_tokens) - max(kept, self.least_tokens)
        return saved * layers_left > kept * self.gather

    def asks(self, tokens: int, layers_since: int) -> bool:
        """Return whether it is asked how many rows survive: of a wave too small for a compaction only now and then,
        since nothing but the end of all its rows would change what is done.

        Args:
            layers_since: since the first at which a row can leave, or since it was asked.
        """
        return tokens > self.least_tokens or layers_since >= SELDOM


W = TypeVar("W")
Q = TypeVar("Q")


@dataclass
class WaveQueue(Generic[W, Q]):
    """What is to be done: rows that have not begun, waves that wait by the layers they have behind them, and questions,
    each a wave whose count of survivors travels to the host.

    What is next depends on what was put, and in which order, and on nothing else; so a resumed job repeats it.

    Args:
        fresh: rows of each wave that has not begun.
        token_budget: the most tokens of waves that are joined.
        under_way: how many questions travel at once while there is something to run.
        worthwhile: share of the budget that must have come together at a depth, while rows are left to begin.
    """

    fresh: deque[np.ndarray]
    token_budget: int
    under_way: int = 1
    worthwhile: float = WORTHWHILE
    _waiting: dict[int, deque[tuple[int, W]]] = field(default_factory=dict)  # depth -> tokens and wave, as they came
    _asked: deque[Q] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.fresh or self._waiting or self._asked)

    def put(self, depth: int, tokens: int, wave: W) -> None:
        """Let a wave of `tokens` tokens, with `depth` layers behind it, wait for others of its depth."""
        self._waiting.setdefault(depth, deque()).append((tokens, wave))

    def ask(self, question: Q) -> None:
        """Let a question travel."""
        self._asked.append(question)

    def due(self) -> Q | None:
        """Take the oldest question if its answer is to be waited for now; None while another wave can run meanwhile."""
        if not self._asked:
            return None
        has_work = bool(self.fresh or self._waiting)
        return None if has_work and len(self._asked) < self.under_way else self._asked.popleft()

    def pop(self) -> tuple[int, np.ndarray | Sequence[W]]:
        """Take what runs next: a depth, and the waves there that are to be joined; at depth 0, rows that begin.

        While rows are left to begin, the deepest waves come first that are worthwhile, so that few wait at any depth;
        then rows that begin. When there are no more, whatever waits is swept on from the shallowest depth, and meets
        the rest on its way: even a small wave keeps a GPU busy while the counts of another travel.
        """
        depth = self._fullest() if self.fresh else min(self._waiting)
        if depth is None:
            return 0, self.fresh.popleft()
        waiting = self._waiting[depth]
        spent, wave = waiting.popleft()
        joined = [wave]
        while waiting and spent + waiting[0][0] <= self.token_budget:
            tokens, wave = waiting.popleft()
            spent += tokens
            joined.append(wave)
        if not waiting:
            del self._waiting[depth]
        return depth, joined

    def _fullest(self) -> int | None:
        """Return the deepest depth at which enough tokens wait."""
        enough = self.worthwhile * self.token_budget
        full = [depth for depth, waiting in self._waiting.items() if sum(tokens for tokens, _ in waiting) >= enough]
        return max(full, default=None)
