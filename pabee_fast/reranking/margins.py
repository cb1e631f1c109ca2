"""Which margins are worth trying: a chain of shortlists, the strictest first, each the cheapest at what it risks."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pabee_fast.policies import Shortlist
from pabee_fast.reranking.replay import ListTrace

PRICES = np.geomspace(300.0, 0.3, 25)
"""Of losing all of the best, in costs of full depth: the dearest begins the chain."""

LEVELS = (*(1 - np.geomspace(0.4, 5e-4, 28)), 1.0)
"""Shares of the best that one layer's margin may keep."""
SLACK = 1.5
"""Times the margin that keeps all: the strictest but for none."""

HEAD_COST = 0.02
"""Asking a head, in layers: so much must be dropped where it is asked. An estimate for a head over the mean token."""

SWEEPS = 4

STRICTER = (4.0, 3.0, 2.0, 1.6, 1.35, 1.15)
"""Times the strictest margins: what the lists that choose do not lose, others may, and the walk ends where it fails."""


def shortlists(of: ListTrace, top_k: int) -> tuple[Shortlist, ...]:
    """Return a chain of shortlists, the strictest first.

    What a layer's margin loses shows in how far the best of full depth are below the bar there. The margins of all
    layers are chosen together, in turns: by the cost in tokens times layers, and what is lost of the best at a price.
    The price falls along the chain.

    Args:
        of: lists that only choose what is tested.
        top_k: how many of a list are wanted.
    """
    deficits, best, layers = of.deficits(top_k).double().numpy(), of.best(top_k).numpy(), of.trace.layers
    tokens, sizes = of.trace.lengths.double().numpy(), of.sizes.clamp(1, top_k)[of.lists].double().numpy()
    weights = best / (sizes * len(of))  # of a row lost
    spent = tokens / (tokens.sum() * layers)  # by a row, a layer
    choices = [
        _choices(deficits[layer][best]) if layer + 1 >= of.trace.first_layer else np.array([math.inf])
        for layer in range(layers - 1)
    ]
    chosen = [len(margins) - 1 for margins in choices]
    chain: list[Shortlist] = []
    for price in PRICES:
        for _ in range(SWEEPS):
            before = list(chosen)
            for layer, margins in enumerate(choices):
                others = np.full(len(tokens), layers)  # the layer at which a row leaves by the other layers' margins
                for other in reversed(range(layers - 1)):
                    if other != layer:
                        others[deficits[other] > choices[other][chosen[other]]] = other + 1
                open_rows = others > layer + 1
                left = deficits[layer] > margins[:, None]  # [margins, rows]
                saved = (left & open_rows) @ (spent * (others - (layer + 1)))
                saved -= np.isfinite(margins) * HEAD_COST * (spent @ (others > layer))
                lost = (left & open_rows) @ (weights * (others == layers))
                chosen[layer] = int(np.argmin(price * lost - saved))
            if chosen == before:
                break
        found = tuple(float(margins[place]) for margins, place in zip(choices, chosen, strict=True))
        if min(found, default=math.inf) < math.inf and (not chain or chain[-1].margins != found):
            chain.append(Shortlist(top_k, found, of.label))
    return _in_small_steps(chain)


def _in_small_steps(chain: list[Shortlist]) -> tuple[Shortlist, ...]:
    """Return a chain with stricter ones before its first, and one between neighbours."""
    found = [
        replace(first, margins=_rounded(times * np.array(first.margins))) for first in chain[:1] for times in STRICTER
    ]
    for before, after in itertools.pairwise(chain):
        pairs = zip(before.margins, after.margins, strict=True)
        between = _rounded([math.inf if math.inf in pair else math.sqrt(math.prod(pair)) for pair in pairs])
        found.append(before)
        if between not in (before.margins, after.margins) and min(between) < math.inf:
            found.append(replace(before, margins=between))
    return (*found, *chain[-1:])


def _rounded(margins: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{margin:.4g}") for margin in margins)


def _choices(deficits: np.ndarray) -> np.ndarray:
    """Return margins by what they keep of the best, ascending, with four digits; the last keeps every row."""
    kept = np.quantile(deficits, LEVELS) if len(deficits) else np.zeros(1)
    return np.array([*sorted(set(_rounded([*kept, SLACK * kept[-1]]))), math.inf])
