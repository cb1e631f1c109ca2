"""Traces as files: written once from a table, and read in place of running the model; `pabee-fast trace`."""

from pathlib import Path

from pabee_fast.calibration.settings import TraceSettings
from pabee_fast.calibration.trace import Trace, trace
from pabee_fast.errors import InputError
from pabee_fast.options import RunOptions
from pabee_fast.policies import FullDepth
from pabee_fast.scoring.examples import read_examples
from pabee_fast.scoring.labels import labels_of_config
from pabee_fast.scoring.load import Setting, load_scorer


def write_trace(settings: TraceSettings) -> Trace:
    """Run a model over a table at full depth, and write what every head says of every row.

    Raises:
        InputError: a setting, table or model that cannot be used as given, or a row that cannot be scored.
        CheckpointError: heads that are broken.
    """
    setting = Setting.choose(settings.device, settings.dtype)
    examples = read_examples(settings.table, settings.text_columns, settings.label_column, settings.reading)
    scorer = load_scorer(
        settings.model,
        FullDepth(),
        setting,
        max_length=settings.max_length,
        token_budget=settings.token_budget,
        stride=settings.stride,
    )
    labels = None
    if settings.label_column is not None:
        labels = labels_of_config(scorer.model.config).encode(examples.column)
    made = trace(
        scorer.model,
        scorer.tokenizer,
        examples.texts,
        labels=labels,
        max_length=scorer.max_length,
        token_budget=settings.token_budget,
        stride=scorer.stride,
    )
    made.save(settings.output)
    return made


def load_trace(path: Path, settings: RunOptions) -> Trace:
    """Return a trace, which no option may contradict.

    Raises:
        InputError: there is no such file, or an option says otherwise than it was made.
        CheckpointError: the file is no trace.
    """
    rows = Trace.load(path)
    made = rows.conditions
    if settings.max_length not in (None, made.max_length):
        raise InputError(
            f"max_length={settings.max_length}, and {path} was made with rows cut at {made.max_length} tokens: leave "
            "the option out, or make a new trace"
        )
    if settings.stride not in (None, made.stride):
        raise InputError(
            f"stride={settings.stride}, and {path} was made with long texts {made.long_texts}: leave the option out, "
            "or make a new trace"
        )
    if settings.dtype not in ("auto", made.dtype):
        raise InputError(
            f"dtype={settings.dtype!r}, and {path} was made in {made.dtype}: leave the option out, or make a new trace"
        )
    return rows
