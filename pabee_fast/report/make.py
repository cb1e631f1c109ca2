"""From tables and model directories to a report's page: what `pabee-fast report` does."""

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from pabee_fast.calibration.alike import warn_of_alike_heads
from pabee_fast.calibration.guarantee import guarantee_of
from pabee_fast.calibration.known import WORTH_SAYING, Known
from pabee_fast.calibration.risks import answers
from pabee_fast.calibration.trace import Trace, checked_labels, trace
from pabee_fast.models.heads import stored_max_length
from pabee_fast.policies import FullDepth
from pabee_fast.report.rule import Stored, time_rule
from pabee_fast.report.sections import in_short, report
from pabee_fast.report.settings import ReportSettings
from pabee_fast.report.study import Study, check_measures, check_shallower
from pabee_fast.scoring.examples import Examples, read_examples
from pabee_fast.scoring.labels import labels_of_config
from pabee_fast.scoring.load import Setting, load_scorer
from pabee_fast.scoring.scorer import Scorer
from pabee_fast.scoring.teacher import full_depth_logits, in_order_of
from pabee_fast.shown import plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """The page, and in short what it says of each table."""

    page: str
    lines: tuple[str, ...]


def make_report(settings: ReportSettings) -> Report:
    """Run the models over the tables and write the page.

    Raises:
        InputError: a setting, table or model that cannot be used as given.
    """
    setting = Setting.choose(settings.device, settings.dtype)
    examples = [
        read_examples(table, settings.text_columns, settings.label_column, settings.reading)
        for table in settings.tables
    ]
    first = _load(settings, setting, settings.model[0])
    if stored_max_length(first.model.config) is not None:
        settings = replace(settings, max_length=first.max_length)  # all models are to read the same
    scorers = [first, *(_load(settings, setting, path) for path in settings.model[1:])]
    for scorer in scorers:  # rather than after the models have run
        check_measures(scorer.engine.kind, scorer.engine.classes, settings.metric, settings.tolerance)
    rivals = [_load(settings, setting, path) for path in settings.truncated]
    check_shallower((len(rival.engine.layers) for rival in rivals), len(scorers[0].engine.layers))
    studies = [
        _study(settings, setting, scorers, rivals, table, rows)
        for table, rows in zip(settings.tables, examples, strict=True)
    ]
    made = Report(report(studies), tuple(line for study in studies for line in in_short(study)))
    settings.output.write_text(made.page, encoding="utf-8")
    return made


def _load(settings: ReportSettings, setting: Setting, path: str) -> Scorer:
    return load_scorer(
        path,
        FullDepth(),
        setting,
        max_length=settings.max_length,
        token_budget=settings.token_budget,
        stride=settings.stride,
    )


def _study(
    settings: ReportSettings,
    setting: Setting,
    scorers: list[Scorer],
    rivals: list[Scorer],
    table: str,
    examples: Examples,
) -> Study:
    labels = labels_of_config(scorers[0].model.config)
    encoded = labels.encode(examples.column)
    traces = tuple(
        _trace(settings, scorer, examples.texts, encoded, in_order_of(labels, scorer.model, path))
        for path, scorer in zip(settings.model, scorers, strict=True)
    )
    truncated: dict[int, list[Tensor]] = defaultdict(list)
    for path, rival in zip(settings.truncated, rivals, strict=True):
        logits = full_depth_logits(
            rival.model, rival.tokenizer, examples.texts, max_length=rival.max_length, stride=rival.stride
        )
        ordered = logits[:, in_order_of(labels, rival.model, path)]
        truncated[len(rival.engine.layers)].append(answers(ordered, traces[0].kind))
    for of_seed in traces:
        warn_of_alike_heads(logger, list(of_seed.logits[of_seed.first_layer - 1 :]), of_seed.kind, of_seed.first_layer)
    known = [Known.of(trace) for trace in traces]
    for path, of_model in zip(settings.model, known, strict=True):
        if of_model.is_more_than(WORTH_SAYING):
            logger.warning("%s: of %s, %s; its figures flatter the model", table, path, of_model)
    return Study(
        model=plain(settings.name or Path(settings.model[0]).name),
        data=plain(Path(table).name),
        texts=examples.texts,
        traces=traces,
        truncated={depth: tuple(found) for depth, found in truncated.items()},
        label_names=labels.names,
        facts={
            "models": plain(", ".join(settings.model)),
            "hardware": setting.device_name,
            "dtype": f"{setting.dtype_name} ({setting.dtype_reason})",
            "long texts": traces[0].conditions.long_texts,
            "learned before": "; ".join(map(str, dict.fromkeys(known))),
            "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
        },
        metric=settings.metric,
        tolerance=settings.tolerance,
        stored=_stored(scorers[0], examples.texts, traces[0]),
    )


def _stored(scorer: Scorer, texts: list[tuple[str, ...]], trace: Trace) -> Stored | None:
    """Return what `tune` stored with the first model, whether it holds for what this report ran, and how fast it is."""
    guarantee = guarantee_of(scorer.model)
    if guarantee is None:
        return None
    clock = None if isinstance(guarantee.policy, FullDepth) else time_rule(scorer, texts, guarantee.policy)
    return Stored(guarantee.policy, guarantee, guarantee.why_void(trace.conditions), clock)


def _trace(
    settings: ReportSettings, scorer: Scorer, texts: list[tuple[str, ...]], labels: list[Any], order: list[int]
) -> Trace:
    """Return the trace of a seed, its outputs in the given order, which is that of the labels."""
    own = trace(
        scorer.model,
        scorer.tokenizer,
        texts,
        max_length=settings.max_length,
        token_budget=settings.token_budget,
        stride=settings.stride,
    )
    return replace(own, logits=own.logits[:, :, order], labels=checked_labels(labels, own.logits, own.kind))
