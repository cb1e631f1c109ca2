"""From traces to figures: what exits cost, against full depth and against truncated models.

Everything is judged fold by fold, by rules chosen on the other fold (`glue_choose`), and pooled over both folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import pabee_fast as pf
from experiments.glue.choose import Choice, best_within, fastest_above
from pabee_fast.calibration.replay import Replay, Replayer
from pabee_fast.calibration.risks import answers
from pabee_fast.calibration.trace import Trace
from pabee_fast.report.metrics import ensemble, evaluate, metrics_for, right
from pabee_fast.report.significance import mcnemar, paired_bootstrap

MARGIN = 0.005
"""A rule is chosen to lose at most half a point on the rows that choose it, so as to lose less than one elsewhere."""

VALUE_SHARES = (0.02, 0.05, 0.1)
"""Of the labels' standard deviation: what counts as the same value in a regression."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Folds:
    """What is known of the judged rows: two folds, each choosing for the other.

    Args:
        names: of the folds.
        traces: heads' name -> a trace of each fold, with labels.
        stock: the logits of the fine-tuned stock model, [rows, classes] for each fold.
        truncated: layers -> the logits of a model fine-tuned at that depth.
        teacher: the logits of the larger model that they were taught by; None: they had none.
    """

    names: tuple[str, str]
    traces: Mapping[str, tuple[Trace, Trace]]
    stock: Pair
    truncated: Mapping[int, Pair]
    teacher: Pair | None = None

    @property
    def like(self) -> Trace:
        """One of the traces: they agree in layers, outputs and kind of answer."""
        return next(iter(self.traces.values()))[0]

    def whole(self, heads: str) -> Trace:
        """Return the rows of both folds as one trace."""
        first, second = self.traces[heads]
        return first + second

    def labels(self, fold: int | None = None) -> Tensor:
        """Return [rows] of a fold; None: of both."""
        known = [trace.labels for trace in next(iter(self.traces.values()))]
        assert known[0] is not None and known[1] is not None
        return torch.cat([known[0], known[1]]) if fold is None else (known[0], known[1])[fold]


class Judge:
    """Chooses on one fold and judges on the other, both ways."""

    def __init__(self, folds: Folds) -> None:
        self.folds, self.kind, self.layers = folds, folds.like.kind, folds.like.layers
        self.metrics = metrics_for(self.kind, folds.like.logits.shape[2])
        self.replayers = [
            {heads: Replayer(traces[fold], remembered=64) for heads, traces in folds.traces.items()} for fold in (0, 1)
        ]

    def full_depth(self) -> dict[str, Any]:
        """Of the stock model, of each model with heads, and of their teacher: metrics by fold."""
        found = {"stock": self._by_fold(self.folds.stock)}
        if self.folds.teacher is not None:
            found["teacher"] = self._by_fold(self.folds.teacher)
        for heads, (first, second) in self.folds.traces.items():
            found[heads] = self._by_fold((first.logits[-1], second.logits[-1]))
        return found

    def by_layer(self) -> dict[str, Any]:
        """Return every head's main metric over both folds, and that of all heads together."""
        found = {}
        for heads in self.folds.traces:
            trace = self.folds.whole(heads)
            found[heads] = {
                "first_layer": trace.first_layer,
                "layers": [self._metrics(layer)[self.metrics[0]] for layer in trace.logits[trace.first_layer - 1 :]],
                "ensemble": self._metrics(ensemble(trace))[self.metrics[0]],
            }
        return found

    def equal_layers(self) -> list[dict[str, Any]]:
        """At the depth of every truncated model: the best rule with no more layers in the mean against it."""
        found = []
        for layers, logits in sorted(self.folds.truncated.items()):
            rival = torch.cat(logits)
            choices = [
                best_within(self.replayers[1 - fold], self.replayers[fold], layers, self._score) for fold in (0, 1)
            ]
            line = {"layers": layers, "truncated": self._metrics(rival)}
            found.append(line | self._judged(choices, rival))
        return found

    def within_a_point(self) -> dict[str, Any]:
        """Return the least layers at which the rule is no more than a point below the stock model at full depth."""
        choices = []
        for fold in (0, 1):
            least = self._metrics(self.folds.stock[1 - fold], 1 - fold)[self.metrics[0]] - MARGIN
            choices.append(fastest_above(self.replayers[1 - fold], self.replayers[fold], least, self._score))
        return self._judged(choices, torch.cat(self.folds.stock))

    def within_layers(self, share: float) -> dict[str, Any]:
        """Return the best rule with a mean exit layer of at most a share of the layers, against stock at full depth."""
        most = share * self.layers
        choices = [best_within(self.replayers[1 - fold], self.replayers[fold], most, self._score) for fold in (0, 1)]
        return {"share": share, **self._judged(choices, torch.cat(self.folds.stock))}

    def patience(self, heads: str = "pabee") -> list[dict[str, Any]]:
        """PABEE's claim: every patience of the published recipe against full depth of the same model.

        Nothing is chosen: all settings are listed.
        """
        thresholds: Sequence[float | None] = [None]
        if self.kind == "value":
            thresholds = [round(share * float(self.folds.labels().std()), 4) for share in VALUE_SHARES]
        full, found = self.folds.whole(heads).logits[-1], []
        for patience in range(1, self.layers - 1):
            for threshold in thresholds:
                policy = pf.Patience(patience, threshold)
                replays = [replayers[heads].replay(policy) for replayers in self.replayers]
                found.append(self._judged([Choice(heads, policy, done) for done in replays], full))
        return found

    def _score(self, done: Replay, replayer: Replayer) -> float:
        labels = replayer.trace.labels
        assert labels is not None
        return evaluate(self.metrics[0], answers(done.logits, self.kind), labels)

    def _judged(self, choices: Sequence[Choice | None], rival: Tensor) -> dict[str, Any]:
        """Return what the choices did with both folds, against a rival's logits of the same rows."""
        made = [choice for choice in choices if choice is not None]
        if len(made) < 2:
            return {"reached": False}
        logits = torch.cat([choice.replay.logits for choice in made])
        exits = torch.cat([choice.replay.exit_layers for choice in made])
        lengths = torch.cat([choice.replay.lengths for choice in made])
        return {
            "reached": True,
            "choices": [
                {
                    "judged_on": name,
                    "heads": choice.heads,
                    "policy": str(choice.policy),
                    "mean_exit_layer": choice.replay.mean_exit_layer,
                    **self._metrics(choice.replay.logits, fold),
                }
                for fold, (name, choice) in enumerate(zip(self.folds.names, made, strict=True))
            ],
            "mean_exit_layer": float(exits.double().mean()),
            "layer_ratio": float(lengths.sum() * self.layers / (lengths * exits).sum()),
            "metrics": self._metrics(logits),
            "rival": self._metrics(rival),
            **self._difference(logits, rival),
        }

    def _difference(self, ours: Tensor, theirs: Tensor) -> dict[str, Any]:
        """Ours less theirs in the main metric, and whether it could be chance: McNemar's exact test of the accuracy, a
        paired bootstrap of the correlation."""
        labels = self.folds.labels()
        first, second = answers(ours, self.kind), answers(theirs, self.kind)
        if self.kind == "value":
            return asdict(paired_bootstrap(self.metrics[0], [first], [second], labels))
        found = mcnemar(right(first, labels), right(second, labels))
        return {"difference": (found.only_first - found.only_second) / len(labels), **asdict(found)}

    def _by_fold(self, logits: Pair) -> dict[str, Any]:
        by_fold: dict[str, Any] = {name: self._metrics(logits[i], i) for i, name in enumerate(self.folds.names)}
        return by_fold | {"both": self._metrics(torch.cat(logits))}

    def _metrics(self, logits: Tensor, fold: int | None = None) -> dict[str, float]:
        answered, labels = answers(logits, self.kind), self.folds.labels(fold)
        return {name: evaluate(name, answered, labels) for name in self.metrics}
