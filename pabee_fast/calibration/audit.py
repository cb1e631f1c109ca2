"""The audit: a few rows, chosen by where they stand, also run to full depth, and what that says of all rows.

Knows counts and probabilities; knows nothing of models.
"""

import math
import zlib
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95


def chosen(file: str, first_row: int, rows: int, share: float) -> np.ndarray:
    """Return [rows] bool: which of a file's rows from `first_row` on are audited, a share of all.

    A pure function of the file's name and the row's number, so that a row is chosen or not however the job is cut, and
    whether or not it is resumed.
    """
    seed = np.uint64(zlib.crc32(file.encode(errors="surrogateescape"))) << np.uint64(32)
    row = seed + np.arange(first_row, first_row + rows, dtype=np.uint64)
    # The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every other.
    row = (row ^ row >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    row = (row ^ row >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    row ^= row >> np.uint64(31)
    return row <= np.uint64(min(int(share * 2**64), 2**64 - 1)) if share > 0 else np.zeros(rows, dtype=bool)


def interval(events: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval of a probability after `events` in `trials` (Clopper and Pearson, Biometrika 1934).

    Its ends are the probabilities under which so many events or more, or so many or fewer, come with a probability of
    (1 - confidence) / 2. Written out, since scipy is no requirement of scoring.
    """
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else _solve(_at_most(events - 1, trials), 1 - tail)
    high = 1.0 if events == trials else _solve(_at_most(events, trials), tail)
    return low, high


def _solve(falling: Callable[[float], float], value: float) -> float:
    """Return the probability at which a falling function takes the value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > value else (low, middle)
    return (low + high) / 2


def _at_most(events: int, trials: int) -> Callable[[float], float]:
    """P(X <= events) of a binomial X, as a function of its probability between 0 and 1."""
    k = np.arange(events + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((trials - k[1:] + 1) / k[1:]))])
    return lambda p: min(1.0, float(np.exp(log_choose + k * math.log(p) + (trials - k) * math.log1p(-p)).sum()))
