"""What `pabee-fast fit` and `pabee-fast train` take. Knows no torch."""

import importlib.util
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from pabee_fast.arguments import (
    require_between,
    require_model,
    require_one_of,
    require_positive,
    require_seed,
    require_share,
    require_whole,
)
from pabee_fast.calibration.settings import TuneSettings
from pabee_fast.errors import InputError, PabeeFastError
from pabee_fast.extras import require
from pabee_fast.options import (
    GUARANTEED,
    LEARNED,
    MODEL,
    READ,
    RUN,
    TABLES,
    WRITTEN,
    Argument,
    Option,
    Options,
    RunOptions,
    TextOptions,
    ThreadOptions,
)
from pabee_fast.training.kept import is_begun

OBJECTIVES = ("pabee", "self-distillation")
"""How the heads learn from the last one, beside labels and teacher."""
SCHEDULES = ("linear", "cosine", "constant")
MAX_TOKENS = 128
"""Of a row in training, where nothing else is asked for or stored."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput(Options):
    """The model directory that is left."""

    output: Annotated[Path, Option(WRITTEN, "Directory for the model with heads.")]
    remember_rows: Annotated[
        bool,
        Option(
            WRITTEN,
            "Keep hashes of at most 1,024 rows in the model's config, so that tune can tell whether it is given rows "
            "that the model knows. Whoever has a text can tell by them whether it was among the rows.",
        ),
    ] = True
    overwrite: Annotated[bool, Option(WRITTEN, "Write into a directory that has files.")] = False

    @property
    def goes_on(self) -> bool:
        """Whether the output may be that of the same command, interrupted."""
        return False

    def check(self) -> None:
        super().check()
        check_model_output(self.output, overwrite=self.overwrite or self.goes_on)


@dataclass(frozen=True, kw_only=True)
class FitSettings(TextOptions, RunOptions, ThreadOptions, ModelOutput):
    """What `pabee-fast fit` was asked for."""

    table: Annotated[str, Argument("TABLE", f"Texts: {TABLES}.")]
    model: Annotated[str, Option(MODEL, "Model directory or hub id of a fine-tuned classifier.")]
    label_column: Annotated[
        str | None, Option(READ, "Column of labels, used where a row has one; default: none is needed.")
    ] = None
    head: Annotated[str, Option(MODEL, "pabee, own-pooler or linear; see pf.attach_heads.")] = "linear"
    pooling: Annotated[str, Option(MODEL, "What heads read: the first token, the last, or the mean of all.")] = "mean"
    first_layer: Annotated[int, Option(MODEL, "First layer that gets a head.")] = 1
    alpha: Annotated[float, Option(LEARNED, "The model's share in what is learned of a row with a label.")] = 0.5
    held_out: Annotated[float, Option(LEARNED, "Share of the rows that only choose and scale.")] = 0.1
    seed: Annotated[int, Option(LEARNED, "Seed of the rows held out, and of those that calibrate.")] = 0
    tune: Annotated[
        bool,
        Option(
            GUARANTEED,
            "Keep a share of the rows apart from the heads and choose a policy by them, as pabee-fast tune does.",
        ),
    ] = False
    epsilon: Annotated[
        float | None, Option(GUARANTEED, "With --tune: the most that the risk may be; default: 0.01.")
    ] = None
    delta: Annotated[
        float | None,
        Option(GUARANTEED, "With --tune: the most that the probability of a broken promise may be; default: 0.05."),
    ] = None
    tolerance: Annotated[
        float | None,
        Option(GUARANTEED, "With --tune, regression: how far from full depth's an answer may be, in its units."),
    ] = None
    calibration_share: Annotated[
        float | None, Option(GUARANTEED, "With --tune: the share of the rows that calibrate; default: 0.5.")
    ] = None
    dtype: Annotated[str, Option(RUN, "Precision of the one run: auto, float32, bfloat16 or float16.")] = "auto"

    def check(self) -> None:
        super().check()
        require_whole("first_layer", self.first_layer, at_least=1)
        require_between("alpha", self.alpha, 0, 1)
        require_share("held_out", self.held_out)
        require_seed(self.seed)
        self._check_tuning()
        require_model(self.model)
        self.check_tables(self.table)

    def _check_tuning(self) -> None:
        for name in ("epsilon", "delta", "tolerance", "calibration_share"):
            if (given := getattr(self, name)) is None:
                continue
            if not self.tune:
                raise InputError(f"{name}={given}: it is about choosing a policy; give --tune too")
            (require_positive if name == "tolerance" else require_share)(name, given)
        if self.tune:
            require("scipy.stats")
            require("matplotlib")

    @property
    def bounds(self) -> tuple[float, float]:
        """The epsilon and delta of --tune."""
        return (
            TuneSettings.epsilon if self.epsilon is None else self.epsilon,
            TuneSettings.delta if self.delta is None else self.delta,
        )

    @property
    def tuning(self) -> TuneSettings:
        """What `tune` is asked for once the heads are written."""
        return TuneSettings(
            table=self.table,
            model=str(self.output),
            epsilon=self.bounds[0],
            delta=self.bounds[1],
            tolerance=self.tolerance,
            seed=self.seed,
            **{field.name: getattr(self, field.name) for group in (TextOptions, RunOptions) for field in fields(group)},
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TextOptions, ThreadOptions, ModelOutput):
    """What `pabee-fast train` was asked for."""

    train: Annotated[str, Argument("TRAIN", f"Labelled texts: {TABLES}.")]
    model: Annotated[str, Option(MODEL, "Model directory or hub id: an encoder, a classifier, or one with heads.")]
    output: Annotated[
        Path,
        Option(
            WRITTEN,
            "Directory for the trained model; written after every epoch. Stopped, the same command goes on from there.",
        ),
    ]
    label_column: Annotated[
        str,
        Option(
            READ,
            "Column of the labels: ids from 0, names, numbers (regression), or label sets, as lists of ids, of names, "
            "or of a 0 or 1 for every label; in csv as JSON lists or a|b.",
        ),
    ] = "label"
    eval: Annotated[str | None, Option(READ, "Such texts; every layer is evaluated on them after every epoch.")] = None
    problem_type: Annotated[
        str | None,
        Option(READ, "single_label_classification, multi_label_classification or regression; default: by labels."),
    ] = None
    label_names: Annotated[
        str | None,
        Option(
            READ,
            "The new model's labels in their order, between commas: 'bad,good' names the numbers 0 and 1, or orders "
            "names; default: by labels, names in the alphabet's order.",
        ),
    ] = None
    head: Annotated[
        str | None,
        Option(
            MODEL, "New heads: linear, own-pooler, or pabee, the published ones; default: linear. See pf.attach_heads."
        ),
    ] = None
    pooling: Annotated[
        str | None,
        Option(
            MODEL,
            "What new heads read: the first token, the last, or the mean of all; default: mean, of --head pabee what "
            "the model's own classifier reads.",
        ),
    ] = None
    first_layer: Annotated[int | None, Option(MODEL, "First layer that gets a head.")] = None
    epochs: Annotated[int, Option(LEARNED, "Passes over the table.")] = 5
    batch_size: Annotated[int, Option(LEARNED, "Rows of a step (on each device).")] = 32
    accumulate: Annotated[int, Option(LEARNED, "Batches whose gradients make one optimizer step.")] = 1
    learning_rate: Annotated[float, Option(LEARNED, "Peak learning rate of AdamW.")] = 2e-5
    schedule: Annotated[str, Option(LEARNED, "Learning rate after warm-up: linear, cosine or constant.")] = "linear"
    warmup: Annotated[float, Option(LEARNED, "Share of the steps in which the learning rate rises, 0 to 1.")] = 0.06
    weight_decay: Annotated[float, Option(LEARNED, "Weight decay of AdamW.")] = 0.01
    seed: Annotated[int, Option(LEARNED, "Seed of new heads, dropout and the order of rows.")] = 0
    fit_heads: Annotated[
        bool | None,
        Option(
            LEARNED,
            "Once the backbone is trained, fit the heads anew to its answers on these texts; default: unless they are "
            "pabee's.",
        ),
    ] = None
    objective: Annotated[
        str, Option(LEARNED, "pabee, or self-distillation: every head also learns the last one's answers.")
    ] = "pabee"
    teacher: Annotated[
        str | None, Option(LEARNED, "A classifier whose answers are learned beside the labels (distillation).")
    ] = None
    alpha: Annotated[float | None, Option(LEARNED, "The teacher's share of the loss, 0 to 1; default: 0.5.")] = None
    temperature: Annotated[
        float | None, Option(LEARNED, "Softens the teacher's and the heads' answers; default: 2.")
    ] = None
    max_length: Annotated[
        int | None,
        Option(RUN, "Tokens at which a text is cut; default: what is stored with the model's heads, or 128."),
    ] = None
    bf16: Annotated[bool, Option(RUN, "Compute in bfloat16 mixed precision.")] = False

    @property
    def goes_on(self) -> bool:
        return is_begun(self.output)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names that `label_names` gives; () where it is not given."""
        return () if self.label_names is None else tuple(self.label_names.split(","))

    @property
    def cut_at(self) -> int:
        """The most tokens of a row, where a model has none stored."""
        return MAX_TOKENS if self.max_length is None else self.max_length

    def check(self) -> None:
        if importlib.util.find_spec("accelerate") is None:
            raise PabeeFastError("training needs accelerate: pip install 'pabee-fast[train]'")
        super().check()
        for name in ("epochs", "batch_size", "accumulate", "max_length", "first_layer"):
            if (given := getattr(self, name)) is not None:
                require_whole(name, given, at_least=1)
        for name in ("alpha", "temperature"):
            if self.teacher is None and (given := getattr(self, name)) is not None:
                raise InputError(f"{name}={given}: it is about a teacher's answers; name the teacher by --teacher")
        if self.alpha is not None:
            require_between("alpha", self.alpha, 0, 1)
        if self.temperature is not None:
            require_positive("temperature", self.temperature)
        require_between("warmup", self.warmup, 0, 1)
        require_between("weight_decay", self.weight_decay, 0, math.inf)
        require_positive("learning_rate", self.learning_rate)
        require_seed(self.seed)
        require_one_of("objective", self.objective, OBJECTIVES)
        require_one_of("schedule", self.schedule, SCHEDULES)
        self._check_labels()
        require_model(self.model)
        self.check_tables(self.train, *([] if self.eval is None else [self.eval]))

    def _check_labels(self) -> None:
        if self.label_names is None:
            return
        told = f"label_names={self.label_names!r}"
        if self.problem_type == "regression":
            raise InputError(f"{told}: regression has no labels; leave the option out")
        if len(self.labels) < 2 or not all(self.labels) or len(set(self.labels)) < len(self.labels):
            raise InputError(f"{told}: give two or more names that differ, as in bad,good")


def check_model_output(path: str | Path, *, overwrite: bool) -> None:
    """Raise InputError for an output directory that is a file, or has files and may not be overwritten.

    So it is for a name that is not UTF-8: safetensors and tokenizers cannot write there.
    """
    from pabee_fast.tables.durable import check_writable
    from pabee_fast.tables.read import SURROGATES

    output = Path(path)
    if SURROGATES.search(str(output.absolute())):
        raise InputError(f"{output}: the name is not UTF-8, as files of a model must have it; name another directory")
    if output.is_file():
        raise InputError(f"{output} is a file: name a directory for the model")
    check_writable(output)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise InputError(f"{output} exists and is not empty: name another directory, or give --overwrite")
