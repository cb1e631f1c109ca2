"""Would exit rules published since beat ours? `python -m experiments.glue.rules MODEL --task TASK --data FOLDER`.

Each rule is a signal after every layer but the last, and a row leaves at the first layer whose signal lies below a
threshold. The rows of dev and test are halved by a fixed seed: one half chooses a rule's parameters (and from which
layer on it tests) for each depth, and gives accuracies and class means where a rule asks for them; the other half is
judged. The threshold is the one that gives the depth, a mean exit layer, on the rows in question, which takes no
labels. What is counted is how many rows leave with another answer than full depth's.

confidence, entropy: ours.
NSP, CAP: He et al., IJCAI 2025 (arXiv 2506.17249), as their code has them. The share of a head's feature that its
    classifier does not see; and that share, scaled, as the logit of one more class.
BEEM-A: Bajpai and Hanawal, ICLR 2025 (arXiv 2502.00745). Confidences, weighted by each head's accuracy, add up while
    neighbouring heads agree.
EDR: He et al., DE3-BERT (arXiv 2402.05948). The harmonic mean of entropy and the ratio of the distances to the two
    nearest class means; here the means of a model that was not trained for them.

One JSON a task in `results/rules/`.
"""

import argparse
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pabee_fast as pf
from experiments.glue.study import RESULTS
from experiments.glue.tasks import TASKS, Split, has_split, read_split
from pabee_fast.models.heads import heads_of, spec_of
from pabee_fast.report.significance import mcnemar
from pabee_fast.scoring.scorer import Scorer

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Mean exit layers that are compared, as shares of all layers."""


@dataclass(frozen=True)
class Rows:
    """What every layer but the last says of some rows, and what the model answers in the end."""

    features: Tensor  # [layers - 1, rows, hidden]: what heads read
    logits: Tensor  # [layers - 1, rows, classes]
    full: Tensor  # [rows] int64, full depth's answer
    labels: Tensor  # [rows] int64

    def select(self, rows: Tensor) -> "Rows":
        """Return some of the rows."""
        return Rows(self.features[:, rows], self.logits[:, rows], self.full[rows], self.labels[rows])


@dataclass(frozen=True)
class Context:
    """What a rule may know beside the rows: the heads, and rows of before."""

    heads: list[tuple[Tensor, Tensor]]  # weight [classes, hidden] and bias [classes], of every layer but the last
    known: Rows


Signal = Callable[[Rows, Context, float], Tensor]
"""Rows, context and a parameter to [layers - 1, rows]: a row leaves where this is low."""


def confidence(rows: Rows, context: Context, _: float) -> Tensor:
    """One minus the largest probability."""
    return 1 - rows.logits.softmax(-1).amax(-1)


def entropy(rows: Rows, context: Context, _: float) -> Tensor:
    """Of the probabilities, in nats."""
    logs = rows.logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def nsp(rows: Rows, context: Context, _: float) -> Tensor:
    """The length of a feature's part that its head does not see, over the whole's; features are moved so that the
    bias is gone."""
    found = []
    for features, (weight, bias) in zip(rows.features.double(), context.heads, strict=True):
        weight, bias = weight.double(), bias.double()
        moved = features + torch.linalg.pinv(weight) @ bias
        seen = moved @ torch.linalg.pinv(weight) @ weight
        found.append((1 - seen.square().sum(-1) / moved.square().sum(-1)).clamp(min=0).sqrt())
    return torch.stack(found).float()


def cap(rows: Rows, context: Context, scale: float) -> Tensor:
    """The probability of the unseen share as one more class."""
    unseen = scale * nsp(rows, context, 0)[..., None]
    return torch.cat([rows.logits, unseen], -1).softmax(-1)[..., -1]


def beem(rows: Rows, context: Context, _: float) -> Tensor:
    """Minus the confidences that have added up."""
    largest, answers = rows.logits.softmax(-1).max(-1)
    weights = (context.known.logits.argmax(-1) == context.known.labels).float().mean(1)
    total = torch.zeros_like(largest[0])
    found = []
    for layer, weight in enumerate(weights):
        goes_on = answers[layer] == answers[layer - 1] if layer else torch.zeros_like(total, dtype=torch.bool)
        total = torch.where(goes_on, total, 0) + weight * largest[layer]
        found.append(-total)
    return torch.stack(found)


def edr(rows: Rows, context: Context, weight: float) -> Tensor:
    """(weight + 1) / (weight / distance ratio + 1 / entropy), with class means of the known rows' features."""
    known, classes = context.known, rows.logits.shape[-1]
    means = torch.stack([known.features[:, known.full == answer].mean(1) for answer in range(classes)], 1)
    near, far = torch.cdist(rows.features, means).topk(2, largest=False).values.unbind(-1)
    ratio = (0.5 * (1 + (near - far) / far)).clamp(min=1e-9)
    return (weight + 1) / (weight / ratio + 1 / entropy(rows, context, 0).clamp(min=1e-9))


RULES: Mapping[str, tuple[Signal, tuple[float, ...]]] = {
    "confidence": (confidence, (0.0,)),
    "entropy": (entropy, (0.0,)),
    "NSP": (nsp, (0.0,)),
    "CAP": (cap, (0.3, 1.0, 2.0, 4.0, 8.0, 16.0)),
    "BEEM-A": (beem, (0.0,)),
    "EDR": (edr, (0.1, 0.3, 1.0, 3.0, 10.0)),
}
"""Signal, and the parameters that are tried."""


def leave(signal: Tensor, first: int, depth: float) -> Tensor:
    """Return [rows] exit layers, counted from 1, with the largest mean up to `depth` that a threshold gives.

    Args:
        signal: [layers - 1, rows].
        first: the first layer that tests.
        depth: mean exit layer, `first` or more.
    """
    least = signal[first - 1 :].cummin(0).values
    thresholds = least.flatten().unique()
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if _exits(least, thresholds[middle], first).double().mean() > depth:
            low = middle + 1
        else:
            high = middle
    return _exits(least, thresholds[low], first)


def _exits(least: Tensor, threshold: Tensor, first: int) -> Tensor:
    return first + (least > threshold).sum(0)  # who waits through all of them reaches the last layer


def changed(rows: Rows, exits: Tensor) -> Tensor:
    """Return [rows] bool: which leave with another answer than full depth's."""
    answers = torch.cat([rows.logits.argmax(-1), rows.full[None]])[exits - 1, torch.arange(len(exits))]
    return answers != rows.full


def compare(choosing: Rows, judged: Rows, heads: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return by depth and rule what was chosen and how many answers change."""
    context, layers = Context(heads, choosing), len(choosing.logits) + 1
    signals = {
        name: {value: (signal(choosing, context, value), signal(judged, context, value)) for value in values}
        for name, (signal, values) in RULES.items()
    }
    found: dict[str, Any] = {}
    for share in DEPTHS:
        depth = share * layers
        lines, wrong = {}, {}
        for name, by_value in signals.items():
            options = [(value, first) for value in by_value for first in range(1, layers) if first <= depth]
            value, first = min(
                options, key=lambda o: int(changed(choosing, leave(by_value[o[0]][0], o[1], depth)).sum())
            )
            exits = leave(by_value[value][1], first, depth)
            wrong[name] = changed(judged, exits)
            lines[name] = {
                "parameter": value,
                "first_layer": first,
                "mean_exit_layer": float(exits.double().mean()),
                "changed": int(wrong[name].sum()),
            }
        for name, line in lines.items():
            line["p_against_confidence"] = mcnemar(~wrong[name], ~wrong["confidence"]).p_value
        found[f"{depth:.1f}"] = lines
    return found


def read(model: Any, tokenizer: Any, split: Split, max_length: int) -> tuple[Rows, list[tuple[Tensor, Tensor]]]:
    """Return what the heads of a model read and say of rows."""
    scorer = Scorer(model, tokenizer, max_length=max_length)
    rows = [row[0] if len(row) == 1 else row for row in split.rows]
    features, logits = scorer.engine.every_feature(scorer.batch(rows), spec_of(model).pooling)
    heads = [(head.weight.detach(), head.bias.detach()) for head in heads_of(model)[:-1]]
    said = [each @ weight.T + bias for each, (weight, bias) in zip(features, heads, strict=True)]
    return Rows(features, torch.stack(said), logits.argmax(-1), torch.tensor(split.labels).long()), heads


def main() -> None:
    """Parse options and write a task's JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a directory with linear heads")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4_000, help="the most of dev and test together")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS / "rules")
    args = parser.parse_args()
    task = TASKS[args.task]
    splits = [read_split(args.data, task, name) for name in ("dev", "test") if has_split(args.data, task, name)]
    pairs = [pair for split in splits for pair in zip(split.rows, split.labels, strict=True) if pair[1] is not None]
    random.Random(0).shuffle(pairs)
    drawn = Split(*zip(*pairs[: args.rows], strict=True))
    from transformers import AutoTokenizer

    rows, heads = read(
        pf.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model), drawn, args.max_length
    )
    choosing, judged = (rows.select(part) for part in torch.arange(len(drawn)).tensor_split(2))
    found: dict[str, Any] = {"task": task.name, "layers": len(rows.logits) + 1, "chosen_on": len(choosing.full)}
    found |= {"judged_on": len(judged.full), "by_depth": compare(choosing, judged, heads)}
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{task.name}.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    for depth, lines in found["by_depth"].items():
        print(depth, {name: line["changed"] for name, line in lines.items()})
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
