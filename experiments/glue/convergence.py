"""Do distilled models gain nothing from exits? `python -m experiments.glue.convergence --data DATA --models TASK=DIR`.

LEAP (arXiv 2605.01058) finds so of convergence exits of models whose layers were distilled side by side, MiniLM among
them. Three rules are compared on a model with heads fitted to it, each by its best threshold on the rows themselves:

states    a row leaves when what the model's own classifier reads has nearly the direction it had a layer before
answers   it leaves when that classifier, asked behind every layer, is sure enough
heads     it leaves when the head that was fitted to the layer is sure enough

The figure is the mean exit layer where at most `--changed` of the answers differ from full depth's.
One JSON a task in `results/convergence/`; no row is written.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softmax

import pabee_fast as pf
from experiments.glue.models import load_tokenizer
from experiments.glue.study import RESULTS
from experiments.glue.tasks import TASKS, Split, has_split, read_split
from pabee_fast.models.head import through_pooler
from pabee_fast.scoring.scorer import Scorer


def rows_of(data: Path, name: str, most: int) -> Split:
    """Return labelled rows that trained nothing, drawn by a fixed seed."""
    splits = [read_split(data, TASKS[name], each) for each in ("dev", "test") if has_split(data, TASKS[name], each)]
    pairs = [pair for split in splits for pair in zip(split.rows, split.labels, strict=True) if pair[1] is not None]
    rows, labels = zip(*pairs, strict=True)
    return Split(rows, labels).sample(most)


@torch.no_grad()
def measure(model: Any, tokenizer: Any, split: Split, changed: float) -> dict[str, Any]:
    """Return the figures of a classifier."""
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
    return {
        "rows": len(split),
        "layers": len(own),
        "layers_run": {name: fewest(sure, answers, changed) for name, (sure, answers) in rules.items()},
        "accuracy_by_layer": {
            name: (answers == labels).double().mean(1).tolist()
            for name, (_, answers) in rules.items()
            if name != "states"
        },
        "cosine_by_layer": alike[1:-1].mean(1).tolist(),
    }


def fewest(sure: Tensor, answers: Tensor, changed: float) -> float:
    """Return the least mean exit layer, over thresholds, at which at most so many answers are not the last layer's.

    Args:
        sure: [layers, rows]; a row leaves at the first layer where it reaches the threshold, else at the last.
        answers: [layers, rows] classes.
        changed: share of the rows.
    """
    layers, best = len(sure), float(len(sure))
    for threshold in sure[:-1].unique():
        reached = sure >= threshold
        reached[-1] = True
        exits = reached.int().argmax(0)
        if (answers.gather(0, exits[None])[0] != answers[-1]).double().mean() <= changed:
            best = min(best, float(exits.double().mean()) + 1)
    return min(best, float(layers))


def main() -> None:
    """Measure every model and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="TASK=MODEL", help="with fitted heads")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--changed", type=float, default=0.01)
    args = parser.parse_args()
    folder = RESULTS / "convergence"
    folder.mkdir(parents=True, exist_ok=True)
    print("| task | layers run: states | answers | heads | first heads' accuracy, own classifier | fitted |")
    print("|---|---|---|---|---|---|")
    for each in args.models:
        name, _, path = each.partition("=")
        model = pf.from_pretrained(path)
        found = measure(model, load_tokenizer(Path(path)), rows_of(args.data, name, args.rows), args.changed)
        (folder / f"{name}.json").write_text(json.dumps({"task": name, "changed": args.changed, **found}) + "\n")
        run = " | ".join(f"{found['layers_run'][rule]:.2f}" for rule in ("states", "answers", "heads"))
        early = " | ".join(
            ", ".join(f"{100 * share:.0f}" for share in found["accuracy_by_layer"][rule][:3])
            for rule in ("answers", "heads")
        )
        print(f"| {name} | {run} of {found['layers']} | {early} |", flush=True)


if __name__ == "__main__":
    main()
