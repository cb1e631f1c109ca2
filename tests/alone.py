"""Where a row leaves when it is alone: an evaluation that shares nothing with the runtime and the kernels."""

import collections
import dataclasses
import math

import scipy.stats
import torch
from scipy.spatial.distance import jensenshannon

import pabee_fast as pf

POLICIES = [
    *(pf.Patience(patience) for patience in (1, 2, 3)),
    pf.Patience(1, first_layer=2),
    pf.Patience(1, every=2),
    pf.Confidence(0.7),
    pf.Entropy(0.5, first_layer=2),
    pf.PatientConfidence(2, 0.85),
    pf.PatientDivergence(1, 0.03),
    pf.PatientDivergence(2, 0.1, every=2),
    pf.Vote(1.4),
    pf.Vote(1.2, first_layer=2),
]
"""Each rule with several settings, for models of two classes."""


def exit_alone(logits: torch.Tensor, policy: pf.Policy) -> tuple[int, float]:
    """Where one row leaves by the published rules, in double precision, from its heads' logits [layers, classes]; and
    the least margin by which a comparison on the way was decided."""
    layers, classes = logits.shape
    tested = [n for n in range(1, layers) if n >= policy.first_layer and (n - policy.first_layer) % policy.every == 0]
    streak, votes, margin, seen = 0, collections.Counter[int](), float("inf"), []
    options = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    for tests, layer in enumerate(tested, start=1):
        row = logits[layer - 1].double()
        top, second = (row / logits.abs().max()).topk(2).values.tolist()
        seen.append(row.softmax(0).numpy())
        label, entropy = int(row.argmax()), float(scipy.stats.entropy(seen[-1]))
        votes[label] += 1
        before = seen[-2] if tests > 1 else None
        match policy:
            case pf.Patience():
                margin = min(margin, top - second)
                streak = streak + 1 if before is not None and before.argmax() == label else 0
                leaves = streak >= options["patience"]
            case pf.Vote():
                margin = min(margin, top - second)
                leaves = max(votes.values()) / tests ** options["exponent"] >= options["threshold"]
            case pf.Confidence():
                margin = min(margin, abs(seen[-1].max() - options["threshold"]))
                leaves = seen[-1].max() > options["threshold"]
            case pf.Entropy():
                margin = min(margin, abs(entropy - options["threshold"]))
                leaves = entropy < options["threshold"]
            case pf.PatientConfidence():
                margin = min(margin, abs(entropy / math.log(classes) - options["threshold"]))
                streak = streak + 1 if entropy / math.log(classes) < options["threshold"] else 0
                leaves = streak >= options["patience"]
            case pf.PatientDivergence():
                divergence = 1.0 if before is None else float(jensenshannon(before, seen[-1])) ** 2
                margin = min(margin, abs(divergence - options["threshold"]))
                streak = streak + 1 if divergence < options["threshold"] else 0
                leaves = streak >= options["patience"]
        if leaves:
            return layer, margin
    return layers, margin
