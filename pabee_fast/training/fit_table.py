"""`fit`, from a table and a model directory to a model directory."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from pabee_fast.calibration.calibrate import check_rows
from pabee_fast.calibration.known import Known
from pabee_fast.calibration.learned_rows import hashes_of
from pabee_fast.calibration.risks import Risk
from pabee_fast.calibration.settings import ORDER_SHARE
from pabee_fast.errors import InputError
from pabee_fast.models.heads import CONFIG_ENTRY, FIT, answer_kind, classifies
from pabee_fast.scoring.examples import Scorable, labels_where_given, open_tables
from pabee_fast.scoring.labels import labels_of_config
from pabee_fast.scoring.load import Setting
from pabee_fast.scoring.scorer import Row
from pabee_fast.training.directory import load_config_and_tokenizer, load_model, save
from pabee_fast.training.fit import fit
from pabee_fast.training.settings import FitSettings

CALIBRATION_SHARE = 0.5
"""Of the rows, those that calibrate where a policy is to be chosen and nothing else is asked for."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model, in the precision it was stored in, and how long it took."""

    model: PreTrainedModel
    setting: Setting
    record: dict[str, Any]  # what its config says of the fit, see `fit`
    left_out: int  # rows that cannot be scored
    pass_seconds: float  # the one run of all texts, tokenisation included
    head_seconds: float  # the training of all heads
    calibration: Sequence[Row]  # the rows that were kept apart to calibrate by; none where no policy is to be chosen


def fit_table(
    settings: FitSettings,
    *,
    on_window: Callable[[int], None] = lambda rows: None,
    on_head: Callable[[int], None] = lambda layer: None,
) -> Fitted:
    """Fit heads for the model of a directory by the texts of a table, and write the model with them.

    The texts run in the precision that `score` would choose. The weights are written as they were stored, bit for bit.

    Raises:
        InputError: a setting, table or model directory that cannot be used as given.
    """
    setting = Setting.choose(settings.device, settings.dtype)
    tables = open_tables(settings.table, settings.text_columns, settings.reading)
    config, tokenizer = load_config_and_tokenizer(settings.model)
    if classifies(config) != "texts":
        raise InputError(
            f"model {settings.model} is no fine-tuned classifier ({', '.join(config.architectures or ['unknown'])}): "
            "fit gives exits to a model that answers already; train one with `pabee-fast train`"
        )
    labels = None
    if settings.label_column is not None:
        column = labels_where_given(settings.table, tables, settings.label_column)
        labels = labels_of_config(config).encode(column)
    stored = load_model(settings.model, "auto")
    settings.output.parent.mkdir(parents=True, exist_ok=True)  # the features lie beside the model meanwhile
    running = copy.deepcopy(stored).to(setting.device, setting.dtype)
    texts = Scorable(tables)
    rows: Iterable[Row] = texts
    calibration: list[Row] = []
    if settings.tune:
        everything = list(texts)
        is_apart = apart(everything, _share(settings), settings.seed)
        calibration = [row for row, flag in zip(everything, is_apart, strict=True) if flag]
        rows = [row for row, flag in zip(everything, is_apart, strict=True) if not flag]
        labels = labels and [label for label, flag in zip(labels, is_apart, strict=True) if not flag]
        _check_calibration(settings, stored, calibration, len(everything))
    passed = started = time.perf_counter()

    def on_pass(rows: int) -> None:
        nonlocal passed
        passed = time.perf_counter()
        on_window(rows)

    fit(
        running,
        tokenizer,
        rows,
        labels,
        head=settings.head,
        pooling=settings.pooling,
        first_layer=settings.first_layer,
        alpha=settings.alpha,
        held_out=settings.held_out,
        seed=settings.seed,
        max_length=settings.max_length,
        token_budget=settings.token_budget,
        stride=settings.stride,
        folder=settings.output.parent,
        remember_rows=settings.remember_rows,
        onto=stored,
        on_window=on_pass,
        on_head=on_head,
    )
    ended = time.perf_counter()
    record = getattr(stored.config, CONFIG_ENTRY)[FIT]
    save(stored, tokenizer, settings.output, {})
    return Fitted(stored, setting, record, texts.left_out, passed - started, ended - passed, calibration)


def apart(rows: Sequence[Row], share: float, seed: int) -> np.ndarray:
    """Return [rows] bool: which rows calibrate, about a share of them.

    A row's text and the seed decide, so that copies of a text fall on one side, and no row that heads have learned from
    is among those that judge them.
    """
    return hashes_of(rows, seed) < np.uint64(min(int(share * 2**64), 2**64 - 1))


def _share(settings: FitSettings) -> float:
    return CALIBRATION_SHARE if settings.calibration_share is None else settings.calibration_share


def _check_calibration(settings: FitSettings, model: PreTrainedModel, rows: Sequence[Row], of: int) -> None:
    """Raise InputError, before the model runs, for what would be said of these rows once the heads are fitted."""
    kind = answer_kind(model)
    Risk.choose(kind, None, settings.tolerance).check_kind(kind)
    try:
        check_rows(len(rows), *settings.bounds, ORDER_SHARE)
        Known.of_texts(model.config, rows).refuse_most()
    except InputError as error:
        told = f"tune: of {of} rows {len(rows)} calibrate (calibration share {_share(settings):g})"
        raise InputError(f"{told}: {error}") from None
