"""Seconds to replay a hundred policies over a large trace: `python -m bench.replay`.

The trace is made up: every row's logits wander over the layers with growing steps, so that rows settle everywhere. The
policies are as many of each rule as the other, over settings that let rows leave at many layers; those of one rule that
test the same layers share what the rule looks at, as they do when `pf.calibrate` or a report replays them.
"""

import argparse
import json
import statistics
from typing import Any

import torch

import pabee_fast as pf
from bench import timing
from pabee_fast.scoring.conditions import Conditions

LAYERS = 12


def made_up_trace(rows: int, classes: int, seed: int = 0) -> pf.Trace:
    """Return a trace of no model, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, rows, classes, generator=generator).cumsum(0)
    lengths = torch.randint(4, 128, (rows,), generator=generator)
    return pf.Trace(logits, lengths, "label", Conditions("made up", "made up", "float32", 128))


def hundred_policies() -> list[pf.Policy]:
    """Return sixteen of each rule and twenty of confidence, on four grids of layers."""
    policies: list[pf.Policy] = []
    for start, (first_layer, every) in enumerate([(1, 1), (1, 2), (3, 1), (3, 2)]):
        grid = {"first_layer": first_layer, "every": every}
        shares = [(start + 1 + 4 * i) / 20 for i in range(4)]  # between 0 and 1, others on each grid
        policies += [pf.Confidence(0.5 + share / 2.5, **grid) for share in [*shares, 0.99]]
        policies += [pf.Entropy(0.7 * share, **grid) for share in shares]
        policies += [pf.Vote(0.5 + 1.5 * share, **grid) for share in shares]
        for patience, share in enumerate(shares, 1):
            policies.append(pf.Patience(patience, **grid))
            policies.append(pf.PatientConfidence(patience, share, **grid))
            policies.append(pf.PatientDivergence(patience, 0.3 * share, **grid))
    return policies


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the case and return its figures."""
    trace, policies = made_up_trace(args.rows, args.classes), hundred_policies()
    exits: dict[str, float] = {}

    def replay_all() -> None:
        replayer = pf.Replayer(trace)  # a new one each time: nothing is remembered from the round before
        for policy in policies:
            exits[str(policy)] = replayer.replay(policy).mean_exit_layer

    seconds = timing.interleaved({"replay": replay_all}, args.rounds, torch.device("cpu"))["replay"]
    return {
        "hardware": timing.hardware(torch.device("cpu")),
        "dtype": "float32",
        "torch": torch.__version__,
        "rows": args.rows,
        "layers": LAYERS,
        "classes": args.classes,
        "policies": len(policies),
        "mean_exit_layers": {"min": min(exits.values()), "max": max(exits.values())},
        "rounds": args.rounds,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
    }


def main() -> None:
    """Parse options, measure, print a sentence and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    figures = measure(parser.parse_args())
    print(
        f"{figures['policies']} policies over {figures['rows']:,} rows x {figures['layers']} layers x "
        f"{figures['classes']} classes in {figures['median_seconds']:.2f} s (median of {figures['rounds']}), "
        f"{figures['hardware']}, torch {figures['torch']}"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
