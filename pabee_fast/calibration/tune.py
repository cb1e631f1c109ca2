"""From a table to a stored guarantee: what `pabee-fast tune` does, without the terminal."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pabee_fast.calibration.alike import ALIKE, share_alike, warn_of_alike_heads
from pabee_fast.calibration.calibrate import Calibration, calibrate, check_rows
from pabee_fast.calibration.guarantee import check_directory, store_guarantee
from pabee_fast.calibration.known import Known
from pabee_fast.calibration.plots import frontier_figure, save_figure, styled
from pabee_fast.calibration.risks import Risk
from pabee_fast.calibration.settings import TuneSettings
from pabee_fast.calibration.trace import Trace, trace
from pabee_fast.calibration.trace_files import load_trace
from pabee_fast.policies import FullDepth
from pabee_fast.scoring.answers import label_names
from pabee_fast.scoring.examples import read_examples
from pabee_fast.scoring.labels import labels_of_config
from pabee_fast.scoring.load import Setting, load_scorer
from pabee_fast.scoring.scorer import Row, Scorer

logger = logging.getLogger(__name__)

ASSUMPTION = (
    "The promise is for rows that are exchangeable with the calibration rows: drawn from the same source in the same "
    "way. Those must be unseen by training and by fit; a model is surer of rows that it has learned from."
)


@dataclass(frozen=True)
class Tuned:
    """What came of it: the calibration, what it ran on, and the files written."""

    calibration: Calibration
    setting: Setting
    layers: int
    files: tuple[Path, ...]
    names: tuple[str, ...]  # of the labels, one an output
    alike: float  # the share of rows that have full depth's most frequent answer

    @property
    def is_trivial(self) -> bool:
        """Whether full depth answers nearly all rows alike, so that hardly any policy could break the promise."""
        return self.alike >= ALIKE


def tune(settings: TuneSettings, rows: Sequence[Row] | None = None) -> Tuned:
    """Calibrate a model on a table, write the frontier as JSON and as a plot, and store the chosen policy.

    Args:
        settings: what was asked for.
        rows: those of the table to calibrate on; None: all.

    Raises:
        InputError: a setting, table, model or trace that cannot be used as given, or too few rows.
        CheckpointError: heads or a trace that are broken.
        PabeeFastError: scipy or matplotlib is not installed.
    """
    if settings.store:
        check_directory(settings.model)
    traced = load_trace(settings.trace, settings) if settings.trace is not None else None
    setting = Setting.choose(settings.device, settings.dtype if traced is None else traced.conditions.dtype)
    max_length = settings.max_length if traced is None else traced.conditions.max_length
    scorer = load_scorer(
        settings.model,
        FullDepth(),
        setting,
        max_length=max_length,
        token_budget=settings.token_budget,
        stride=settings.stride if traced is None else traced.conditions.stride,
    )
    if traced is None:
        assert settings.table is not None
        # What is wrong with it is said here, rather than after the model has run.
        judged = Risk.choose(scorer.engine.kind, settings.risk, settings.tolerance)
        judged.check_kind(scorer.engine.kind)
        traced = _trace_table(settings, scorer, settings.table, judged, rows)
    else:
        traced.check_conditions(scorer.conditions(), settings.trace)
    order = settings.share if settings.order is None else _trace_table(settings, scorer, settings.order)
    assert order is not None
    warn_of_alike_heads(logger, list(traced.logits[traced.first_layer - 1 :]), traced.kind, traced.first_layer)
    found = calibrate(
        traced,
        epsilon=settings.epsilon,
        delta=settings.delta,
        risk=settings.risk,
        tolerance=settings.tolerance,
        order=order,
        seed=settings.seed,
        allow_learned=settings.allow_learned,
    )
    full, names = traced.logits[-1], tuple(label_names(scorer.model.config))
    tuned = Tuned(found, setting, traced.layers, _files(settings), names, share_alike(full, traced.kind, full))
    _write(settings, tuned, traced)
    if settings.store:
        store_guarantee(settings.model, found.guarantee)
    return tuned


def _trace_table(
    settings: TuneSettings, scorer: Scorer, table: str, judged: Risk | None = None, rows: Sequence[Row] | None = None
) -> Trace:
    """Return a table's trace, or that of `rows` of it; of one that is tested on, by the risk it is `judged` by, what is
    wrong with it is said first."""
    texts: Sequence[Row]
    if rows is None:
        examples = read_examples(table, settings.text_columns, settings.label_column, settings.reading)
        texts = examples.texts
    else:
        texts = rows
    if judged is not None:
        check_rows(len(texts), settings.epsilon, settings.delta, settings.share)
        if not settings.allow_learned:
            Known.of_texts(scorer.model.config, texts).refuse_most()
    labels = None
    if settings.label_column is not None:
        labels = labels_of_config(scorer.model.config).encode(examples.column)
        if judged is not None:
            judged.check(scorer.engine.kind, torch.tensor(labels))
    return trace(
        scorer.model,
        scorer.tokenizer,
        texts,
        labels=labels,
        max_length=scorer.max_length,
        token_budget=settings.token_budget,
        stride=scorer.stride,
    )


def figures(settings: TuneSettings, tuned: Tuned, rows: Trace) -> dict[str, Any]:
    """Return all that was found, and what it was measured on, as JSON values."""
    found, lengths = tuned.calibration, rows.lengths.double()
    return {
        "model": settings.model,
        "rows_from": settings.table or str(settings.trace),
        "rows": len(rows),
        "tokens_per_row": {"mean": float(lengths.mean()), "min": int(lengths.min()), "max": int(lengths.max())},
        "layers": rows.layers,
        "device": tuned.setting.device_name,
        "cost": "tokens x layers of the policy / tokens x layers of full depth",
        "seed": settings.seed,
        "looked_up": asdict(found.known),
        "full_depth_accuracy": found.full_depth_accuracy,
        "full_depth_alike": tuned.alike,
        "guarantee": found.guarantee.entry(),
        "by_answer": {
            name: asdict(errors) for name, errors in zip(tuned.names, found.by_answer, strict=bool(found.by_answer))
        },
        "frontier": [
            {"policy": str(p.policy), "cost": p.cost, "layer_ratio": 1 / p.cost, "risk": p.risk} for p in found.frontier
        ],
        "tested": [
            {
                "walk": step.walk,
                "policy": str(step.policy),
                "cost": step.cost,
                "layer_ratio": 1 / step.cost,
                "errors": step.errors,
                "p_value": step.p_value,
                "passed": step.passed,
            }
            for step in found.tested
        ],
    }


def _files(settings: TuneSettings) -> tuple[Path, Path]:
    return settings.folder / "frontier.json", settings.folder / f"frontier.{settings.plot}"


def _write(settings: TuneSettings, tuned: Tuned, rows: Trace) -> None:
    settings.folder.mkdir(parents=True, exist_ok=True)
    numbers, plot = tuned.files
    numbers.write_text(json.dumps(figures(settings, tuned, rows), indent=2) + "\n")
    figure = frontier_figure(tuned.calibration)
    with styled():
        save_figure(figure, plot)
