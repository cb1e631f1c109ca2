"""From tables and model directories to a report's page: what `pabee-fast report` does."""

import logging
from collections import defaultdict
from collections.abc import Mapping
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
from pabee_fast.calibration.trace import Trace, checked_labels, hash_of_texts, trace
from pabee_fast.calibration.trace_files import load_trace
from pabee_fast.errors import InputError
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
    given = {path: load_trace(path, settings) for path in settings.trace}
    if given:  # all are to be of one precision, and of texts that were read alike
        of = next(iter(given.values())).conditions
        settings = replace(settings, dtype=of.dtype, max_length=of.max_length, stride=of.stride)
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
    known = _assigned(settings, given, scorers, examples)
    studies = [
        _study(settings, setting, scorers, rivals, table, rows, known[table])
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
    known_traces: Mapping[str, Trace],
) -> Study:
    """Return what is studied of a table; of models in `known_traces` these stand for running them."""
    labels = labels_of_config(scorers[0].model.config)
    encoded = labels.encode(examples.column)
    traces = tuple(
        _trace(
            settings,
            scorer,
            examples.texts,
            encoded,
            in_order_of(labels, scorer.model, path),
            known_traces.get(path),
        )
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
            **({"not run": f"{plain(', '.join(known_traces))}, of which a trace was given"} if known_traces else {}),
            "learned before": "; ".join(map(str, dict.fromkeys(known))),
            "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
        },
        metric=settings.metric,
        tolerance=settings.tolerance,
        stored=_stored(scorers[0], examples.texts, traces[0], is_timed=settings.model[0] not in known_traces),
    )


def _assigned(
    settings: ReportSettings, given: Mapping[Path, Trace], scorers: list[Scorer], examples: list[Examples]
) -> dict[str, dict[str, Trace]]:
    """Return by table and model the traces that were given, each found by its texts and its conditions.

    Raises:
        InputError: a trace that is of none of the tables, or of none of the models.
    """
    found: dict[str, dict[str, Trace]] = {table: {} for table in settings.tables}
    if not given:
        return found
    tables = {hash_of_texts(rows.texts): table for table, rows in zip(settings.tables, examples, strict=True)}
    models = {path: scorer.conditions() for path, scorer in zip(settings.model, scorers, strict=True)}
    for path, made in given.items():
        if (table := tables.get(made.texts_hash or "")) is None:
            raise InputError(
                f"{path} is no trace of the texts of {', '.join(settings.tables)}: give the table that it was made of, "
                "or make a new trace"
            )
        own = [model for model, now in models.items() if not made.conditions.differences(now)]
        if not own:
            made.check_conditions(models[settings.model[0]], path)  # says why
        found[table][own[0]] = made
    return found


def _stored(scorer: Scorer, texts: list[tuple[str, ...]], trace: Trace, *, is_timed: bool) -> Stored | None:
    """Return what `tune` stored with the first model, whether it holds for what this report ran, and how fast it is."""
    guarantee = guarantee_of(scorer.model)
    if guarantee is None:
        return None
    has_clock = is_timed and not isinstance(guarantee.policy, FullDepth)
    clock = None if not has_clock else time_rule(scorer, texts, guarantee.policy)
    return Stored(guarantee.policy, guarantee, guarantee.why_void(trace.conditions), clock)


def _trace(
    settings: ReportSettings,
    scorer: Scorer,
    texts: list[tuple[str, ...]],
    labels: list[Any],
    order: list[int],
    known: Trace | None,
) -> Trace:
    """Return the trace of a seed, its outputs in the given order, which is that of the labels; `known` where it is."""
    own = (
        known
        if known is not None
        else trace(
            scorer.model,
            scorer.tokenizer,
            texts,
            max_length=settings.max_length,
            token_budget=settings.token_budget,
            stride=settings.stride,
        )
    )
    runs = None if own.stretch_logits is None else own.stretch_logits[:, :, order]
    return replace(
        own, logits=own.logits[:, :, order], stretch_logits=runs, labels=checked_labels(labels, own.logits, own.kind)
    )
