"""Which heads `pabee-fast train` should leave: trained beside the backbone, or fitted to it once it is trained.

`python -m experiments.glue.train_heads --data FOLDER --work FOLDER`. A few rows of a task train MiniLM-L6 with heads of
one kind by PABEE's objective; then heads (linear, over the mean token) are fitted by the same rows to what was trained.
Both are judged on rows that no training has seen: the accuracy of every head; and a promise of 1 % at 95 % from two
thirds of them, what it saves there, and its accuracy on the last third, medians of several draws of ordering rows. One
JSON a task and kind in `results/train_heads/`.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import pabee_fast as pf
from experiments.glue.models import default_encoder, load_tokenizer
from experiments.glue.study import RESULTS
from experiments.glue.tasks import TASKS, Split, Task, has_split, read_split
from pabee_fast.training.evaluate import score
from pabee_fast.training.settings import TrainSettings
from pabee_fast.training.train import train

KINDS = {"pabee": "first", "linear": "mean"}
"""Heads, and the token they read."""
BUDGETS = {
    "ag_news_subset": (1_600, 3, 48),
    "sst2": (3_200, 2, 32),
    "qqp_subset": (1_600, 2, 48),
}
"""Train rows, epochs and tokens of a row: minutes of one core."""
JUDGED, CALIBRATING, DRAWS = 2_200, 1_500, 5


def folds(data: Path, task: Task) -> tuple[Split, Split]:
    """The rows that train, and those that judge, drawn by fixed seeds."""
    unseen = [read_split(data, task, name) for name in ("dev", "test") if has_split(data, task, name)]
    judged = Split([row for part in unseen for row in part.rows], [label for part in unseen for label in part.labels])
    drawn = []
    for seed, split, most in ((0, read_split(data, task, "train"), BUDGETS[task.name][0]), (1, judged, JUDGED)):
        pairs = [pair for pair in zip(split.rows, split.labels, strict=True) if pair[1] is not None]
        random.Random(seed).shuffle(pairs)
        rows, labels = zip(*pairs[:most], strict=True)
        drawn.append(Split(rows, labels))
    return drawn[0], drawn[1]


def judge(model: Any, tokenizer: Any, split: Split, max_length: int) -> dict[str, Any]:
    """The accuracy of every head, and what a promise of 1 % saves and costs."""
    traced = pf.trace(model, tokenizer, split.rows, labels=list(map(int, split.labels)), max_length=max_length)
    assert traced.labels is not None
    calibrating = min(CALIBRATING, len(split) * 2 // 3)
    calibration, test = (traced.select(rows) for rows in torch.arange(len(split)).tensor_split([calibrating]))
    assert test.labels is not None
    ratios, accuracies = [], []
    for seed in range(DRAWS):
        guarantee = pf.calibrate(calibration, epsilon=0.01, seed=seed).guarantee
        ratios.append(1 / guarantee.cost)
        accuracies.append(float((pf.replay(test, guarantee.policy).logits.argmax(1) == test.labels).double().mean()))
    return {
        "accuracy_by_layer": score(traced.logits, traced.labels, "label")[0].by_layer,
        "layer_ratio": statistics.median(ratios),
        "accuracy": statistics.median(accuracies),
        "full_depth_accuracy": float((test.logits[-1].argmax(1) == test.labels).double().mean()),
    }


def compare(task: Task, head: str, data: Path, encoder: Path, work: Path) -> dict[str, Any]:
    """Heads of one kind as they were trained, and fitted to what was trained."""
    rows, epochs, max_length = BUDGETS[task.name]
    learned, judged = folds(data, task)
    table, output = work / f"{task.name}.jsonl", work / f"{task.name}-{head}"
    columns = ("text",) if len(learned.rows[0]) == 1 else ("a", "b")
    lines = (
        dict(zip((*columns, "label"), (*row, y), strict=True)) for row, y in zip(*vars(learned).values(), strict=True)
    )
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = TrainSettings(
        train=str(table),
        text_column=columns[0],
        text_pair_column=columns[1] if len(columns) == 2 else None,
        model=str(encoder),
        output=output,
        overwrite=True,
        head=head,
        pooling=KINDS[head],
        fit_heads=False,
        epochs=epochs,
        batch_size=16,
        learning_rate=1e-4,
        max_length=max_length,
    )
    model, tokenizer = train(settings, Console(stderr=True)).cpu(), load_tokenizer(output)
    trained = judge(model, tokenizer, judged, max_length)
    pf.fit(model, tokenizer, learned.rows, max_length=max_length)
    return {
        "task": task.name,
        "head": head,
        "pooling": KINDS[head],
        "train_rows": rows,
        "epochs": epochs,
        "max_length": max_length,
        "judged_on": len(judged),
        "trained": trained,
        "fitted": judge(model, tokenizer, judged, max_length),
    }


def main() -> None:
    """Parses options and writes a JSON a task and kind of head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--heads", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, default=default_encoder())
    parser.add_argument("--work", type=Path, default=Path("build/glue"))
    parser.add_argument("--results", type=Path, default=RESULTS / "train_heads")
    args = parser.parse_args()
    for folder in (args.work, args.results):
        folder.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        for head in args.heads:
            found = compare(TASKS[task], head, args.data, args.encoder, args.work)
            target = args.results / f"{task}-{head}.json"
            target.write_text(json.dumps(found, indent=1) + "\n")
            print(f"wrote {target}", flush=True)


if __name__ == "__main__":
    main()
