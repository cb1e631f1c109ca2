"""What `fit` and `calibrate` promise without a label, held against rows that neither has seen."""

from typing import Any

import numpy as np
import torch

import pabee_fast as pf
from experiments.glue.figures import Folds
from pabee_fast.calibration.replay import replay
from pabee_fast.calibration.risks import Risk
from pabee_fast.calibration.trace import Trace
from pabee_fast.extras import require

ROWS, LEAST_LEFT = 2_000, 600
EPSILON, DELTA, LEVEL = 0.01, 0.05, 0.05


def promise(folds: Folds, heads: str, *, draws: int = 10) -> dict[str, Any] | None:
    """Calibrate on ROWS rows and counts disagreements with full depth on the rest; None where there are too few rows.

    The rows are the second fold's, which is test where it has labels; both folds' where that has too few. The first
    draw is the one to report; the others show how much the choice of rows matters. They share rows, so that their
    broken promises are no independent trials.
    """
    alone = len(folds.traces[heads][1]) >= ROWS + LEAST_LEFT
    trace = folds.traces[heads][1] if alone else folds.whole(heads)
    if trace.kind != "label" or len(trace) < ROWS + LEAST_LEFT:
        return None
    found = [_draw(trace, seed) for seed in range(draws)]
    return {
        "epsilon": EPSILON,
        "delta": DELTA,
        "folds": folds.names[1:] if alone else folds.names,
        "rows": ROWS,
        "layers": trace.layers,
        **found[0],
        "draws": {
            "count": draws,
            "mean_exit_layer": [one["mean_exit_layer"] for one in found],
            "risk": [one["errors"] / one["rows_left"] for one in found],
            "rejected": sum(one["rejected"] for one in found),
        },
    }


def _draw(trace: Trace, seed: int) -> dict[str, Any]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(trace)))
    policy = pf.calibrate(trace.select(order[:ROWS]), epsilon=EPSILON, delta=DELTA, seed=seed).policy
    left = trace.select(order[ROWS:])
    done = replay(left, policy)
    errors = int(Risk("disagreement").losses(left, done).sum())
    p = float(
        require("scipy.stats").binom.sf(errors - 1, len(left), EPSILON)
    )  # of so many errors or more, were the risk EPSILON
    return {
        "policy": str(policy),
        "rows_left": len(left),
        "errors": errors,
        "mean_exit_layer": done.mean_exit_layer,
        "layer_ratio": done.layer_ratio,
        "p_value": p,
        "rejected": p <= LEVEL,
    }
