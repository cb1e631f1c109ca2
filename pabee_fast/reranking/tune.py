"""From a table of candidates to a stored shortlist: what `pabee-fast tune --top-k` does, without the terminal."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pabee_fast.calibration.guarantee import check_directory, store_guarantee
from pabee_fast.calibration.known import Known
from pabee_fast.calibration.settings import LIST_RISKS, TuneSettings
from pabee_fast.calibration.trace import trace
from pabee_fast.errors import InputError
from pabee_fast.policies import FullDepth
from pabee_fast.reranking.calibrate import ListCalibration, calibrate_lists, check_lists
from pabee_fast.reranking.candidates import label_index
from pabee_fast.reranking.replay import ListTrace
from pabee_fast.scoring.examples import read_examples
from pabee_fast.scoring.labels import Column
from pabee_fast.scoring.load import Setting, load_scorer
from pabee_fast.tables.lists import runs

ASSUMPTION = (
    "The promise is for lists that are exchangeable with the calibration lists: queries and candidates from the same "
    "sources, as many to a query. They must be unseen by training and by fit."
)


@dataclass(frozen=True)
class TunedLists:
    """What came of it: the calibration, what it ran on, and the file written."""

    calibration: ListCalibration
    setting: Setting
    layers: int
    lists: int
    rows: int
    file: Path


def tune_lists(settings: TuneSettings) -> TunedLists:
    """Calibrate a reranker on a table of candidates, write what was tried as JSON, and store the chosen shortlist.

    Args:
        settings: what was asked for, `top_k` among it.

    Raises:
        InputError: a setting, table or model that cannot be used as given, or too few lists.
        CheckpointError: heads that are broken.
    """
    assert settings.table is not None and settings.top_k is not None and settings.share is not None
    if settings.store:
        check_directory(settings.model)
    setting = Setting.choose(settings.device, settings.dtype)
    scorer = load_scorer(
        settings.model, FullDepth(), setting, max_length=settings.max_length, token_budget=settings.token_budget
    )
    label = label_index(scorer.labels, scorer.engine.kind, settings.label)
    examples = read_examples(settings.table, settings.text_columns, settings.label_column, settings.reading)
    lists = runs(pa.array([query for query, _ in examples.texts], pa.large_string()))
    # What is wrong with it is said here, rather than after the model has run.
    check_lists(int(lists[-1]) + 1, settings.epsilon, settings.delta, settings.share)
    if not settings.allow_learned:
        Known.of_texts(scorer.model.config, examples.texts).refuse_most()
    relevance = None if settings.label_column is None else _relevance(examples.column)
    traced = trace(
        scorer.model,
        scorer.tokenizer,
        examples.texts,
        max_length=scorer.max_length,
        token_budget=settings.token_budget,
    )
    found = calibrate_lists(
        ListTrace(traced, torch.from_numpy(lists), label, relevance),
        settings.top_k,
        epsilon=settings.epsilon,
        delta=settings.delta,
        risk=settings.risk or LIST_RISKS[0],
        order=settings.share,
        seed=settings.seed,
    )
    tuned = TunedLists(
        found, setting, traced.layers, int(lists[-1]) + 1, len(lists), settings.folder / "shortlists.json"
    )
    settings.folder.mkdir(parents=True, exist_ok=True)
    tuned.file.write_text(json.dumps(_figures(settings, tuned), indent=2) + "\n")
    if settings.store:
        store_guarantee(settings.model, found.guarantee)
    return tuned


def _relevance(column: Column) -> Tensor:
    """Return [rows] float32; raises InputError, naming the row, for what is no number of 0 or more."""
    values: Sequence[Any] = column.values()
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise InputError(f"{column.place(row)}: relevance {value!r}; give a number of 0 or more")
    return torch.tensor([float(value) for value in values])


def _figures(settings: TuneSettings, tuned: TunedLists) -> dict[str, Any]:
    """Return all that was found, and what it was measured on, as JSON values."""
    found = tuned.calibration
    return {
        "model": settings.model,
        "rows_from": settings.table,
        "lists": tuned.lists,
        "rows": tuned.rows,
        "layers": tuned.layers,
        "device": tuned.setting.device_name,
        "cost": "tokens x layers of the policy / tokens x layers of full depth",
        "seed": settings.seed,
        "guarantee": found.guarantee.entry(),
        "tested": [asdict(step) | {"policy": str(step.policy), "layer_ratio": 1 / step.cost} for step in found.tested],
    }
