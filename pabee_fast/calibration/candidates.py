"""Which policies come into question for a model: the chains that `calibrate` and the report walk along.

A chain is a family of policies that differ in one setting, the strictest first: from one to the next rows leave no
later and, as a rule, with more risk. Thresholds lie at quantiles of what a rule sees in a trace, so that they suit any
model; they are rounded, so that a user can say them.
"""

import functools
import math
from collections.abc import Callable, Iterator

import torch

from pabee_fast.calibration.replay import Replayer
from pabee_fast.policies import (
    Confidence,
    Entropy,
    FixedDepth,
    Patience,
    PatientConfidence,
    PatientDivergence,
    Policy,
    Vote,
)

Chain = tuple[Policy, ...]
Grid = dict[str, int]
"""The options by which every policy chooses the layers it tests."""

THRESHOLDS = 32
"""Of a chain, at most. A fixed sequence may be as fine as one likes: that does not weaken its tests."""
STRICT = (0.001, 0.003, 0.01)
"""Quantiles at which a chain begins, so that it begins safely; the rest are evenly spaced."""
LEAST = 1e-6
"""Of a threshold: below it, float32 decides."""
VOTE_EXPONENTS = (0.25, 0.5)
QUANTILE_ROWS = 4_096
"""Rows that quantiles are taken of, at most."""


def chains_for(replayer: Replayer) -> list[Chain]:
    """Chain of every rule that suits the trace's answers; each holds only policies by which rows can leave early."""
    trace = replayer.trace
    chains = [list(_fixed_depths(trace.first_layer, trace.layers))]
    for grid in grids(trace.first_layer, trace.layers):
        if trace.kind == "value":
            for patience in (1, 2, 3):
                chains.append(_by_threshold(replayer, functools.partial(Patience, patience, **grid)))
            continue
        chains.append([Patience(patience, **grid) for patience in range(trace.layers, 0, -1)])
        if trace.kind == "label":
            chains += _of_classes(replayer, grid)
    early = (tuple(policy for policy in chain if policy.first_exit(trace.layers) < trace.layers) for chain in chains)
    return [chain for chain in early if chain]


def grids(first: int, layers: int) -> Iterator[Grid]:
    """Yield layers to begin at, from `first` to two thirds of the model; in a deep model also every second one from the
    first two on."""
    wanted = (1, 2, 3, round(layers / 4), round(layers / 3), round(layers / 2), round(2 * layers / 3))
    starts = sorted({max(first, start) for start in wanted if max(first, start) < layers})
    yield from ({"first_layer": start, "every": 1} for start in starts)
    if layers >= 8:
        yield from ({"first_layer": start, "every": 2} for start in starts[:2])


def _fixed_depths(first: int, layers: int) -> Iterator[Policy]:
    return (FixedDepth(depth) for depth in range(layers - 1, first - 1, -1))


def _of_classes(replayer: Replayer, grid: Grid) -> Iterator[list[Policy]]:
    """Yield the rules that need probabilities."""
    layers, classes = replayer.trace.layers, replayer.trace.classes
    yield _by_threshold(replayer, functools.partial(Confidence, **grid), falling=True)
    if classes > 2:  # of two classes, entropy and confidence order rows alike
        yield _by_threshold(replayer, functools.partial(Entropy, **grid))
    for patience in (2, 3):
        make = functools.partial(PatientConfidence, patience, **grid)
        yield _by_threshold(replayer, make, unit=math.log(classes))
    for patience in (1, 2):
        yield _by_threshold(replayer, functools.partial(PatientDivergence, patience, **grid))
    for exponent in VOTE_EXPONENTS:
        shares = torch.linspace(layers ** (1 - exponent), 1, THRESHOLDS // 2).tolist()
        yield [Vote(_rounded(threshold), exponent, **grid) for threshold in shares]


def _by_threshold(
    replayer: Replayer, make: Callable[[float], Policy], *, unit: float = 1.0, falling: bool = False
) -> list[Policy]:
    """Return policies at quantiles of what their rule sees, the strictest first.

    Args:
        make: from a threshold to a policy.
        unit: of the threshold, in those of the rule's measure.
        falling: whether the highest threshold is the strictest.
    """
    seen = replayer.measures(make(0.5))
    step = max(1, len(replayer.trace) // QUANTILE_ROWS)
    measure = torch.cat([layer[::step] for layer in seen]) if seen else torch.empty(0)
    measure = measure[measure.isfinite()].double() / unit
    if not len(measure):
        return []
    levels = torch.cat([torch.tensor(STRICT), torch.linspace(0, 1, THRESHOLDS - len(STRICT) + 2)[1:-1]]).double()
    values = measure.quantile(1 - levels if falling else levels).tolist()
    # What is missing to 1 is what tells one probability from another.
    rounded = [_rounded(value, 1 - value) if falling else _rounded(value) for value in values]
    most = 1.0 if falling or unit != 1 else math.inf  # a probability, or a share
    return [make(threshold) for threshold in dict.fromkeys(rounded) if LEAST < threshold < most]


def _rounded(value: float, size: float | None = None) -> float:
    """Return the value to three digits of itself, or of `size`."""
    size = abs(value if size is None else size)
    return round(value, 2 - math.floor(math.log10(size))) if size > 0 else value
