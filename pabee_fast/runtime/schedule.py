"""What runs when: the cut into waves, and whether a compaction pays. Plain arithmetic, no torch."""

import numpy as np

from pabee_fast.errors import InputError

GATHER_COST = 0.03
"""Moving a survivor's token, in layers: 2 * hidden_size * itemsize bytes against 24 * hidden_size^2 FLOP, by the rates
of an H200 and BERT-base's hidden size. An estimate; a CPU, which multiplies slowly, has it lower."""


def plan_waves(lengths: np.ndarray, token_budget: int, longest_row: int | None = None) -> list[np.ndarray]:
    """Cuts rows into waves of at most `token_budget` tokens, longest rows first, rows of one length side by side.

    A pure function of its arguments, so that a resumed job repeats its waves. Longest first, so that memory that does
    not suffice shows at once.

    Args:
        lengths: [rows] tokens of each row.
        token_budget: the most tokens a wave holds.
        longest_row: the most tokens of a row; one longer than the budget is a wave of its own. None: the budget.

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
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    waves, first, spent = [], 0, 0
    while first < len(order):
        last = max(first + 1, int(np.searchsorted(ends, spent + token_budget, side="right")))
        waves.append(order[first:last])
        first, spent = last, int(ends[last - 1])
    return waves


def pays(dropped: int, kept: int, layers_left: int, gather_cost: float) -> bool:
    """Whether compaction saves more than it costs: tokens dropped over the layers to come, against tokens moved."""
    return dropped * layers_left > kept * gather_cost
