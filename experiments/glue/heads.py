"""Which heads `fit` should give: every kind on the same frozen models, layer by layer.

`python -m experiments.glue.heads`; models and steps are those of `experiments.glue`: give the same --work, --budget,
--data and --encoder. Each kind is fitted without labels on the same texts. What is counted is how often a layer's
answer on unseen rows is full depth's (of values: how they correlate with full depth's), which needs no labels either.
One JSON a task in `results/heads/`; `python -m experiments.glue --table` shows them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.glue import models as glue_models
from experiments.glue.steps import MAX_LENGTH, Run, Steps
from experiments.glue.study import BUDGETS, DEFAULT_TASKS, RESULTS, add_places, folds_of, steps_of
from experiments.glue.tasks import TASKS
from pabee_fast.calibration.risks import answers
from pabee_fast.report.metrics import evaluate

KINDS = [
    {"head": head, "pooling": pooling} for head in ("linear", "own-pooler", "pabee") for pooling in ("mean", "first")
]


def compare(steps: Steps, run: Run, fitted: int, judged: int) -> dict[str, Any]:
    """Return every kind of head on one stock model.

    Args:
        fitted: the most texts that heads are fitted on.
        judged: the most rows of each fold.

    Returns:
        "agreement": "head, pooling" -> the agreement with full depth after each layer but the last.
    """
    names, splits = folds_of(steps.data, run.task, judged)
    stock = steps.classifier(run)
    found = {}
    for kind in KINDS:
        model = steps.fit(run, stock, kind, fitted)
        traces = [steps.trace(run, model, name, split) for name, split in zip(names, splits, strict=True)]
        logits, kind_of_answer = torch.cat([trace.logits for trace in traces], dim=1), traces[0].kind
        full = answers(logits[-1], kind_of_answer)
        found[f"{kind['head']}, {kind['pooling']}"] = [
            _agreement(answers(layer, kind_of_answer), full) for layer in logits[:-1]
        ]
    return {
        "task": run.task.name,
        "model": run.model,
        "seed": run.seed,
        "averaged": run.averaged,
        "taught": run.taught,
        "augmented": run.augmented,
        "budget": run.budget.name,
        "stock": stock.name,
        "metric": "Pearson" if full.is_floating_point() else "same answer",
        "fitted_on": min(fitted, len(steps.train_rows(run))),
        "judged_on": sum(map(len, splits)),
        "max_length": MAX_LENGTH,
        "agreement": found,
    }


def _agreement(answered: Tensor, full: Tensor) -> float:
    """Return the share of the same labels [rows] int64, or the correlation of values [rows] float32."""
    return (
        evaluate("Pearson", answered, full) if full.is_floating_point() else float((answered == full).double().mean())
    )


def main() -> None:
    """Parse options and write a JSON a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(DEFAULT_TASKS))
    parser.add_argument("--model", choices=glue_models.COPIES, default="minilm")
    parser.add_argument("--rows", type=int, default=3_000, help="texts that heads are fitted on")
    parser.add_argument("--judged", type=int, default=1_000, help="rows of each fold")
    add_places(parser)
    parser.add_argument("--results", type=Path, default=RESULTS / "heads")
    args = parser.parse_args()
    steps = steps_of(parser, args)
    args.results.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        run = Run(TASKS[task], args.model, 0, BUDGETS[args.budget])
        target = args.results / f"{run.name}.json"
        target.write_text(json.dumps(compare(steps, run, args.rows, args.judged), indent=1) + "\n")
        print(f"wrote {target}", flush=True)


if __name__ == "__main__":
    main()
