"""`fit`, from a table and a model directory to a model directory."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pabee_fast.errors import InputError
from pabee_fast.models.heads import CONFIG_ENTRY, FIT, classifies
from pabee_fast.scoring.examples import Scorable, labels_where_given, open_tables
from pabee_fast.scoring.labels import labels_of_config
from pabee_fast.scoring.load import Setting
from pabee_fast.tables.read import USUAL, Reading
from pabee_fast.training.directory import check_model_output, load_config_and_tokenizer, load_model, save
from pabee_fast.training.fit import fit


@dataclass(frozen=True)
class FitSettings:
    """What `pabee-fast fit` was asked for; the command's help describes each."""

    table: str
    model: str
    output: str
    text_columns: tuple[str, ...] = ("text",)
    label_column: str | None = None
    head: str = "linear"
    pooling: str | None = "mean"
    first_layer: int = 1
    alpha: float = 0.5
    held_out: float = 0.1
    max_length: int | None = None
    token_budget: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    remember_rows: bool = True
    overwrite: bool = False
    reading: Reading = USUAL  # of csv and tsv


@dataclass(frozen=True)
class Fitted:
    """A fitted model, in the precision it was stored in, and how long it took."""

    model: PreTrainedModel
    setting: Setting
    record: dict[str, Any]  # what its config says of the fit, see `fit`
    left_out: int  # rows that cannot be scored
    pass_seconds: float  # the one run of all texts, tokenisation included
    head_seconds: float  # the training of all heads


def fit_table(
    settings: FitSettings,
    *,
    on_window: Callable[[int], None] = lambda rows: None,
    on_head: Callable[[int], None] = lambda layer: None,
) -> Fitted:
    """Fits heads for the model of a directory by the texts of a table, and writes the model with them.

    The texts run in the precision that `score` would choose. The weights are written as they were stored, bit for bit.

    Raises:
        InputError: a setting, table or model directory that cannot be used as given.
    """
    output = Path(settings.output)
    check_model_output(output, overwrite=settings.overwrite)
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
    output.parent.mkdir(parents=True, exist_ok=True)  # the features lie beside the model meanwhile
    running = copy.deepcopy(stored).to(setting.device, setting.dtype)
    texts, started = Scorable(tables), time.perf_counter()
    passed = started

    def on_pass(rows: int) -> None:
        nonlocal passed
        passed = time.perf_counter()
        on_window(rows)

    fit(
        running,
        tokenizer,
        texts,
        labels,
        head=settings.head,
        pooling=settings.pooling,
        first_layer=settings.first_layer,
        alpha=settings.alpha,
        held_out=settings.held_out,
        seed=settings.seed,
        max_length=settings.max_length,
        token_budget=settings.token_budget,
        folder=output.parent,
        remember_rows=settings.remember_rows,
        onto=stored,
        on_window=on_pass,
        on_head=on_head,
    )
    ended = time.perf_counter()
    record = getattr(stored.config, CONFIG_ENTRY)[FIT]
    save(stored, tokenizer, output, {})
    return Fitted(stored, setting, record, texts.left_out, passed - started, ended - passed)
