"""Do distilled models gain nothing from exits? `python -m experiments.glue.convergence --data DATA --models TASK=DIR`.

LEAP (arXiv 2605.01058) finds so of convergence exits of models whose layers were distilled side by side, MiniLM among
them. Three rules are compared on a model with heads fitted to it, each by its best threshold on the rows themselves:

states    a row leaves when what the model's own classifier reads has nearly the direction it had a layer before
answers   it leaves when that classifier, asked behind every layer, is sure enough
heads     it leaves when the head that was fitted to the layer is sure enough

The figure is the mean exit layer where at most `--changed` of the answers differ from full depth's, and the accuracy
that is left there; for fitted heads the wall-clock too, against full depth on the same rows. No policy reads the other
two rules' signals, so their gain is at most all layers over those that were run. Classes alone: not for regressions.
One JSON a task in `results/convergence/`; no row is written. `python -m experiments.glue --table` makes the table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softmax

import pabee_fast as pf
from experiments.glue.clock import wall_clock
from experiments.glue.models import load_tokenizer
from experiments.glue.study import RESULTS
from experiments.glue.tasks import TASKS, Split, has_split, read_split
from pabee_fast.models.head import through_pooler
from pabee_fast.report.significance import mcnemar
from pabee_fast.scoring.scorer import Scorer


def rows_of(data: Path, name: str, most: int) -> Split:
    """Return labelled rows that trained nothing, drawn by a fixed seed."""
    splits = [read_split(data, TASKS[name], each) for each in ("dev", "test") if has_split(data, TASKS[name], each)]
    pairs = [pair for split in splits for pair in zip(split.rows, split.labels, strict=True) if pair[1] is not None]
    rows, labels = zip(*pairs, strict=True)
    return Split(rows, labels).sample(most)


@torch.no_grad()
def measure(model: Any, tokenizer: Any, split: Split, changed: float, rounds: int) -> dict[str, Any]:
    """Return the figures of a classifier.

    Args:
        changed: share of the rows whose answers may differ from full depth's.
        rounds: how often full depth and fitted heads take turns against the clock.
    """
    scorer = Scorer(model, tokenizer, policy=pf.FullDepth())
    engine, batch = scorer.engine, scorer.batch(split.rows)
    family = engine.family
    states, last = engine.every_feature(batch, family.pooling(model))
    read = through_pooler(family.pooler(model), states.flatten(0, 1))
    own = torch.cat([family.classifier(model)(read).float().unflatten(0, states.shape[:2]), last[None]])
    heads = engine.every_head(batch)
    alike = torch.full(own.shape[:2], -1.0)
    alike[1:-1] = cosine_similarity(states[1:].float(), states[:-1].float(), dim=-1)
    labels = torch.tensor(split.labels)
    rules = {
        "states": (alike, own.argmax(2)),
        "answers": (softmax(own, 2).amax(2), own.argmax(2)),
        "heads": (softmax(heads, 2).amax(2), heads.argmax(2)),
    }
    layers_run, right, thresholds = {}, {}, {}
    for name, (sure, answers) in rules.items():
        thresholds[name], leaves = loosest(sure, answers, changed)
        layers_run[name] = float(leaves.double().mean())
        right[name] = answers.gather(0, leaves[None] - 1)[0] == labels
    full = own[-1].argmax(1) == labels
    policies = {"heads": pf.Confidence(thresholds["heads"])}
    return {
        "rows": len(split),
        "layers": len(own),
        "layers_run": layers_run,
        "full_depth_accuracy": float(full.double().mean()),
        "accuracy": {name: float(each.double().mean()) for name, each in right.items()},
        "p_value": {name: mcnemar(each, full).p_value for name, each in right.items()},
        "accuracy_by_layer": {
            name: (answers == labels).double().mean(1).tolist()
            for name, (_, answers) in rules.items()
            if name != "states"
        },
        "cosine_by_layer": alike[1:-1].mean(1).tolist(),
        "wall_clock": wall_clock(model, tokenizer, split.rows, policies, max_length=scorer.max_length, rounds=rounds),
    }


def loosest(sure: Tensor, answers: Tensor, changed: float) -> tuple[float, Tensor]:
    """Return the lowest threshold at which at most so many answers are not the last layer's, and the layers run there.

    Args:
        sure: [layers, rows]; a row leaves at the first layer where it lies above the threshold, else at the last.
        answers: [layers, rows] classes.
        changed: share of the rows.

    Returns:
        The threshold, next to 0 or one of `sure`; and [rows] int64 exit layers, counted from 1.
    """
    least = torch.finfo(sure.dtype).tiny  # as `pf.Confidence` has it: above 0
    for threshold in torch.cat([sure.new_tensor([least]), sure[:-1].flatten()]).unique():
        above = sure > threshold
        above[-1] = True
        exits = above.int().argmax(0)
        if (answers.gather(0, exits[None])[0] != answers[-1]).double().mean() <= changed:
            break  # the highest threshold, if no other, ends here: every row reaches the last layer
    return float(threshold), exits + 1


def main() -> None:
    """Measure every model and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="TASK=MODEL", help="with fitted heads")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--changed", type=float, default=0.01)
    parser.add_argument("--results", type=Path, default=RESULTS / "convergence")
    parser.add_argument("--rounds", type=int, default=9, help="of the clock")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.results.mkdir(parents=True, exist_ok=True)
    for each in args.models:
        name, _, path = each.partition("=")
        model, rows = pf.from_pretrained(path), rows_of(args.data, name, args.rows)
        found = measure(model, load_tokenizer(Path(path)), rows, args.changed, args.rounds)
        target = args.results / f"{name}.json"
        target.write_text(json.dumps({"task": name, "changed": args.changed, **found}) + "\n")
        print(f"wrote {target}", flush=True)


if __name__ == "__main__":
    main()
