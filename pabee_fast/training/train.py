"""Joint fine-tuning of a model and its heads with transformers' Trainer, from tables to a model directory."""

import logging
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

import pabee_fast
from pabee_fast.calibration.alike import warn_of_alike_heads
from pabee_fast.calibration.learned_rows import LearnedRows, remember
from pabee_fast.errors import InputError, PabeeFastError
from pabee_fast.modeling.early_exit import attach_heads
from pabee_fast.modeling.loss import SELF_DISTILLATION, Distillation
from pabee_fast.models import family_of
from pabee_fast.models.heads import (
    BACKBONE,
    CONFIG_ENTRY,
    FIT,
    MAX_LENGTH,
    answer_kind,
    classifies,
    has_heads,
    spec_of,
    stored_max_length,
)
from pabee_fast.scoring.conditions import model_fingerprint
from pabee_fast.scoring.examples import Examples, Features, read_examples
from pabee_fast.scoring.labels import Labels, labels_of_column, labels_of_config
from pabee_fast.scoring.teacher import full_depth_logits, in_order_of
from pabee_fast.scoring.tokens import embedded_ids
from pabee_fast.shown import plain
from pabee_fast.training.directory import load_config_and_tokenizer, load_model
from pabee_fast.training.epochs import Epochs
from pabee_fast.training.evaluate import all_logits
from pabee_fast.training.fit import LEAST_ROWS, fit
from pabee_fast.training.kept import Kept
from pabee_fast.training.settings import TrainSettings

LOGGING_STEPS = 50
NEW_HEADS = {"head": "linear", "pooling": "mean"}
"""New heads where nothing else is asked for: the published ones tell no rows apart in the first layers."""
LOOKED_AT = 512
"""Training rows by which it is seen whether heads answer alike."""

logger = logging.getLogger(__name__)


def train(settings: TrainSettings, console: Console) -> PreTrainedModel:
    """Train a model with heads and write it to `settings.output` after every epoch.

    A training that was interrupted goes on after its last whole epoch, and gives what it would have given; see `kept`.

    Args:
        console: where progress and results are shown.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        InputError: a setting, table or model directory that cannot be used as given, or that differs from those of the
            interrupted training whose output it is.
    """
    if settings.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("bf16: this GPU has no bfloat16; leave --bf16 out")
    examples = read_examples(settings.train, settings.text_columns, settings.label_column, settings.reading)
    held_out = None
    if settings.eval is not None:
        held_out = read_examples(settings.eval, settings.text_columns, settings.label_column, settings.reading)
    set_seed(settings.seed)
    model, tokenizer, settings = _load(settings, examples)
    _remember(settings, model, examples)
    fits = _fits(settings, model, len(examples.texts))
    labels = labels_of_config(model.config)
    console.print(plain(f"labels: {labels}"), highlight=False, markup=False)
    features = examples.features(tokenizer, settings.cut_at, labels.encode(examples.column))
    eval_features = None
    if held_out is not None:
        eval_labels = labels.encode(held_out.column)
        eval_features = held_out.features(tokenizer, settings.cut_at, eval_labels)
    if settings.teacher:
        _add_teacher(settings, features, examples, labels, console)
    kept = Kept.beside(settings.output)
    identity = _identity(settings, model, examples, held_out)
    checkpoint = kept.begin_or_resume(identity, overwrite=settings.overwrite)
    if checkpoint is not None:
        console.print(f"going on after epoch {len(kept.epochs)} of {settings.epochs}")
    trainer = _MultiExitTrainer(
        model,
        _arguments(settings, kept.folder, steps=_steps(settings, len(features))),
        train_dataset=features,
        data_collator=DataCollatorWithPadding(tokenizer),
        distillation=_distillation(settings),
        self_distillation=SELF_DISTILLATION if settings.objective == "self-distillation" else None,
    )
    trainer.remove_callback(PrinterCallback)
    epochs = Epochs(settings, tokenizer, eval_features, console, kept)
    trainer.add_callback(epochs)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model.eval()
    if fits:
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # whose forward is its own again
        texts = [text for text, row in zip(examples.texts, features, strict=True) if row["input_ids"]]
        _fit_heads(settings, model, tokenizer, texts)
        epochs.on_fitted(model)
    else:
        logits = torch.cat(list(all_logits(model, features[:LOOKED_AT], epochs.collator, settings.batch_size)), dim=1)
        warn_of_alike_heads(logger, list(logits), answer_kind(model), spec_of(model).first_layer)
    kept.remove()
    return model


class _MultiExitTrainer(Trainer):
    """The stock Trainer, which also tells the objective how to weigh its terms."""

    def __init__(
        self, *args: Any, distillation: Distillation, self_distillation: Distillation | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weights = {"distillation": distillation, "self_distillation": self_distillation}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs | self.weights, *args, **kwargs)


def _load(
    settings: TrainSettings, examples: Examples
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, TrainSettings]:
    """Return the model with heads, new ones where it has none, its tokenizer, and the settings with the length of
    rows."""
    config, tokenizer = load_config_and_tokenizer(settings.model)
    # A directory that is a classifier already keeps its labels; a bare encoder learns those of the table.
    if classifies(config) == "texts":
        labels = labels_of_config(config)
        if settings.problem_type not in (None, labels.problem_type):
            raise InputError(
                f"problem_type={settings.problem_type!r}: {settings.model} is a classifier already, of "
                f"{labels.problem_type}; leave the option out, or start from a model without a classifier"
            )
        if settings.labels not in ((), labels.names):
            raise InputError(
                f"label_names={settings.label_names!r}: {settings.model} is a classifier already, of {labels}; leave "
                "the option out, or start from a model without a classifier"
            )
        model = load_model(settings.model)
    else:
        labels = labels_of_column(examples.column, settings.problem_type, settings.labels)
        model = load_model(settings.model, new_classifier=labels.config_entries())
    model.config.problem_type = labels.problem_type
    model = _with_heads(settings, model)  # says first if the family is none of ours
    if (embedded := embedded_ids(tokenizer, model)) is not None:
        raise InputError(
            f"model={settings.model!r}: its tokenizer has {len(tokenizer)} tokens, and the model embeds {embedded}; "
            "call model.resize_token_embeddings(len(tokenizer)) and save both"
        )
    longest, length = family_of(model).max_length(model), settings.max_length
    if length is None:
        length = stored_max_length(model.config) or min(settings.cut_at, longest)
    if length > longest:
        raise InputError(f"max_length={length}: the model takes {longest} tokens; give at most that")
    getattr(model.config, CONFIG_ENTRY)[MAX_LENGTH] = length
    return model, tokenizer, replace(settings, max_length=length)


def _with_heads(settings: TrainSettings, model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with the heads asked for; those it has already are trained further."""
    asked = {name: getattr(settings, name) for name in ("head", "pooling", "first_layer")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not has_heads(model):
        return attach_heads(model, **(asked if settings.head == "pabee" else NEW_HEADS | asked))
    has = spec_of(model).entry()
    for name, value in asked.items():
        if has[name] != value:
            raise InputError(
                f"{name}={value!r}: {settings.model} has heads of {name} {has[name]!r} already; leave the option out, "
                "or start from a model without heads"
            )
    getattr(model.config, CONFIG_ENTRY).pop(FIT, None)  # what was fitted for these heads no longer holds
    return model


def _fits(settings: TrainSettings, model: PreTrainedModel, rows: int) -> bool:
    """Return whether heads are fitted in the end, by default unless they are the published ones."""
    if settings.fit_heads is not None:
        if settings.fit_heads and rows < LEAST_ROWS:
            raise InputError(f"fit_heads: {rows} row(s) are too few to fit by; give at least {LEAST_ROWS}")
        return settings.fit_heads
    if rows < LEAST_ROWS:
        logger.warning("%d row(s) are too few to fit heads by: they stay as they are trained", rows)
    return rows >= LEAST_ROWS and spec_of(model).head != "pabee"


def _fit_heads(
    settings: TrainSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, ...]]
) -> None:
    """Fit the heads to the model's answers, so that their scores mean the same at every layer."""
    before = getattr(model.config, CONFIG_ENTRY)
    fit(
        model,
        tokenizer,
        texts,
        **spec_of(model).entry(),
        seed=settings.seed,
        max_length=settings.cut_at,
        folder=settings.output.parent,
        remember_rows=settings.remember_rows,
    )
    entry = getattr(model.config, CONFIG_ENTRY)
    setattr(model.config, CONFIG_ENTRY, before | entry)  # with what others keep there


def _remember(settings: TrainSettings, model: PreTrainedModel, examples: Examples) -> None:
    """Keep in the config which rows the model learns from, beside those it has learned from before."""
    learned = None
    if settings.remember_rows:
        learned = LearnedRows.of(model.config) or LearnedRows()
        learned.add(examples.texts)
    remember(model.config, BACKBONE, learned)


def _add_teacher(
    settings: TrainSettings, features: Features, examples: Examples, labels: Labels, console: Console
) -> None:
    """Give every row its `teacher_logits`."""
    assert settings.teacher is not None
    try:
        _, tokenizer = load_config_and_tokenizer(settings.teacher)
        teacher = load_model(settings.teacher)
    except PabeeFastError as error:
        raise InputError(f"teacher={settings.teacher!r}: {error}") from error
    order = in_order_of(labels, teacher)
    console.print(f"computing the teacher's logits of {len(features)} rows")
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    logits = full_depth_logits(teacher, tokenizer, examples.texts, max_length=settings.cut_at)[:, order]
    wrong = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"teacher={settings.teacher!r}: its logits of {len(wrong)} row(s) are not finite, first that of "
            f"{examples.column.place(wrong[0])}; give a teacher whose weights are finite, or leave such rows out"
        )
    for row, values in zip(features, logits.tolist(), strict=True):
        row["teacher_logits"] = values


def _identity(
    settings: TrainSettings, model: PreTrainedModel, examples: Examples, held_out: Examples | None
) -> dict[str, str]:
    """Return all that decides what comes of a training, by the names that a message tells."""
    told = asdict(settings)
    for name in ("output", "overwrite", "threads"):
        del told[name]
    tables = {"train": examples, "eval": held_out}
    return {
        **{name: str(value) for name, value in told.items()},
        "the model that it begins with": model_fingerprint(model),
        **{f"the rows of {name}": rows.fingerprint for name, rows in tables.items() if rows is not None},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "pabee_fast's version": pabee_fast.__version__,
        "torch's version": torch.__version__,
        "transformers' version": transformers.__version__,
    }


def _distillation(settings: TrainSettings) -> Distillation:
    """Return how a teacher's answers are learned."""
    given = {"alpha": settings.alpha, "temperature": settings.temperature}
    return Distillation(**{name: value for name, value in given.items() if value is not None})


def _steps(settings: TrainSettings, rows: int) -> int:
    """Optimizer steps of the whole run."""
    return math.ceil(math.ceil(rows / settings.batch_size) / settings.accumulate) * settings.epochs


def _arguments(settings: TrainSettings, folder: Path, *, steps: int) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        bf16=settings.bf16,
        use_cpu=settings.bf16 and not torch.cuda.is_available(),  # where Trainer would refuse bfloat16 otherwise
        seed=settings.seed,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,  # the objective takes teacher_logits, which no stock signature names
        logging_steps=min(LOGGING_STEPS, steps),
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
