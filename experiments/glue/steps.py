"""The steps of the evaluation, each kept on disk by its settings, so that a run that was cut goes on where it stopped.

A step's folder is written under another name and renamed when it is whole. Its name ends in a hash of its settings,
which stand beside the output in `step.json`.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import pabee_fast as pf
from experiments.glue import models as glue_models
from experiments.glue.augment import substituted
from experiments.glue.tasks import Split, Task, read_split
from experiments.glue.train import Recipe, choose_training_dtype, encode, finetune, padded
from pabee_fast.calibration.trace import Trace
from pabee_fast.modeling.loss import SELF_DISTILLATION
from pabee_fast.runtime.device import DTYPES
from pabee_fast.scoring.teacher import full_depth_logits

MAX_LENGTH = 128

PROBE_ROWS = 64

FIT_ROWS = 20_000
FIT: dict[str, Any] = {"head": "linear", "pooling": "mean"}

TEACHER_ROWS = 30_000
TEACHER: dict[str, Any] = {"epochs": 1, "batch_size": 32, "learning_rate": 3e-5}
"""How a larger encoder becomes a teacher: 18 minutes of two CPU cores that have AMX, not alone, for MPNet-base."""

JOINT: dict[str, dict[str, Any]] = {
    "pabee": {"head": "pabee"},
    "self-distilled": {"head": "own-pooler", "pooling": "mean"},
}
"""Recipes of training together with heads: the published one, and with the last head as teacher of the others."""


def _digest(folder: Path, pattern: str = "*") -> str:
    """Of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob(pattern) if path.is_file()):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Budget:
    """How much of the data is used.

    Args:
        name: as the command line has it.
        train_rows: the most rows that a model is trained on; None: all.
        epochs: the most passes over them; None: the task's.
        times: what these passes are multiplied by.
        judged_rows: the most rows of each fold; None: all.
        clock_rows: the most rows of each fold that wall-clock is taken on.
    """

    name: str
    train_rows: int | None = None
    epochs: int | None = None
    times: int = 1
    judged_rows: int | None = None
    clock_rows: int = 1_000


@dataclass(frozen=True)
class Run:
    """One model on one task with one seed, or the mean of several seeds' models.

    Args:
        averaged: the seeds whose models' weights are averaged ("Model soups", Wortsman et al., ICML 2022: uniform, so
            no label chooses among them); (): the model of `seed` itself.
        taught: whether its models learn the answers of a larger fine-tuned encoder beside the labels.
        augmented: how many texts without labels, made of parts of the train rows, the teacher answers; if any, it
            answers these alone, and the labels speak for the train rows.
    """

    task: Task
    model: str
    seed: int
    budget: Budget
    averaged: tuple[int, ...] = ()
    taught: bool = False
    augmented: int = 0

    @property
    def seeds(self) -> str:
        """As its files' names have it."""
        return "s" + "+".join(map(str, self.averaged or (self.seed,)))

    @property
    def name(self) -> str:
        """What its files are called."""
        whole = "" if self.budget.name == "full" else f"-{self.budget.name}"
        taught = f"-augmented{self.augmented}" if self.augmented else "-taught" if self.taught else ""
        return f"{self.task.name}-{self.model}-{self.seeds}{whole}{taught}"


class Steps:
    """Makes what is not there yet.

    Args:
        work: the folder of all outputs; weights and traces, so it lies outside the repository.
        encoder: the pretrained encoder's directory.
        data: the folder of tasks.
        device: where models are trained and run.
        teacher: the larger encoder's directory, of runs that are `taught`; None: there is none.

    Raises:
        ValueError: `work` holds steps of another encoder or other data, which no step's settings tell apart.
    """

    def __init__(
        self, work: Path, encoder: Path, data: Path, device: torch.device, teacher: Path | None = None
    ) -> None:
        self.work, self.encoder, self.data, self.device, self.teacher = work, encoder, data, device, teacher
        self.training_dtype = choose_training_dtype(device)
        made_from = work / "made_from.json"
        inputs = json.dumps({"encoder": _digest(encoder), "data": _digest(data, "*.jsonl.gz")}, indent=1) + "\n"
        if not made_from.is_file():
            work.mkdir(parents=True, exist_ok=True)
            made_from.write_text(inputs)
        elif made_from.read_text() != inputs:
            raise ValueError(
                f"--work {work} holds steps made from another encoder or other data than {encoder} and {data}; "
                "name another folder, or empty this one"
            )

    def train_rows(self, run: Run) -> Split:
        """Return the rows with labels that all models of a run are trained on."""
        return read_split(self.data, run.task, "train").sample(run.budget.train_rows)

    def recipe(self, run: Run) -> Recipe:
        """Return how all models of a run are trained."""
        epochs = min(run.task.epochs, run.budget.epochs or run.task.epochs)
        return Recipe(
            epochs=epochs * run.budget.times,
            batch_size=run.task.batch_size,
            learning_rate=run.task.learning_rate,
            max_length=MAX_LENGTH,
            seed=run.seed,
            dtype=self.training_dtype,
        )

    def classifier(self, run: Run, layers: int | None = None, heads: str | None = None) -> Path:
        """Return a fine-tuned model directory: of all layers or of the first ones; trained together with heads, or
        stock.

        Args:
            layers: None: all.
            heads: None: a stock model; else a recipe of JOINT.
        """
        what = heads or (f"first{layers}" if layers else "stock")
        if run.averaged:
            alone = [replace(run, seed=seed, averaged=()) for seed in run.averaged]
            return self._mean(run, what, [self.classifier(one, layers, heads) for one in alone])
        recipe = self.recipe(run)
        settings = {
            "step": "classifier",
            "task": run.task.name,
            "model": run.model,
            "layers": layers,
            "heads": heads and {"recipe": heads, **JOINT[heads]},
            "train_rows": len(self.train_rows(run)),
            "recipe": asdict(recipe),
            **({"taught_by": self.taught_by(run).name} if run.taught else {}),
        }

        def make(place: Path) -> None:
            tokenizer = glue_models.load_tokenizer(self.encoder)
            rows, taught = self.lessons(run)
            probe = padded(encode(tokenizer, rows.rows[:PROBE_ROWS], MAX_LENGTH), tokenizer.pad_token_id)
            copies = glue_models.COPIES[run.model]
            model = glue_models.new_classifier(self.encoder, run.task, copies, run.seed, probe, layers)
            objective: dict[str, Any] = {}
            if heads is not None:
                pf.attach_heads(model, **JOINT[heads])
                objective = {"self_distillation": SELF_DISTILLATION} if heads == "self-distilled" else {}
            if taught is not None:
                objective["teacher_logits"] = taught
            model.to(self.device)
            say, checkpoint = f"{run.name} {what}", place.with_suffix(".checkpoint")
            finetune(model, tokenizer, rows, recipe, say=say, checkpoint=checkpoint, **objective)
            checkpoint.unlink(missing_ok=True)
            model.config._attn_implementation = "sdpa"
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)

        return self._once(f"{run.task.name}-{run.model}-{what}-s{run.seed}", settings, make)

    def lessons(self, run: Run) -> tuple[Split, Tensor | None]:
        """Return what all models of a run are trained on: rows with labels, and a teacher's logits, [rows, classes].

        Augmented texts have the teacher's answers for labels, and train rows beside them NaN for logits.
        """
        rows = self.train_rows(run)
        if not run.taught:
            return rows, None
        logits = load_file(self.taught_by(run) / "logits")["logits"]
        if not run.augmented:
            return rows, logits
        answers = logits[:, 0] if run.task.outputs == 1 else logits.argmax(-1)
        untaught = logits.new_full((len(rows), logits.shape[1]), torch.nan)
        return rows + Split(self.texts(run), answers.tolist()), torch.cat([untaught, logits])

    def taught_by(self, run: Run) -> Path:
        """Return the folder of a teacher's logits: of a run's augmented texts where it has them, else of its train
        rows."""
        texts, teacher = self.texts(run), self.teacher_of(run)
        settings = {"step": "taught", "teacher": teacher.name, "augmented": run.augmented, "rows": len(texts)}

        def make(place: Path) -> None:
            model, tokenizer = self.load(teacher)
            model.to(DTYPES[self.training_dtype])
            save_file({"logits": full_depth_logits(model, tokenizer, texts, max_length=MAX_LENGTH)}, place / "logits")

        return self._once(f"{run.task.name}-taught", settings, make)

    def teacher_of(self, run: Run) -> Path:
        """Return the larger encoder's directory, fine-tuned on a sample of a run's train rows.

        It is one teacher for all seeds, trained by TEACHER, which nobody tuned.
        """
        assert self.teacher is not None
        encoder, rows, recipe = self.teacher, self.train_rows(run), self.teacher_recipe()
        sample = rows.sample(TEACHER_ROWS)
        settings = {
            "step": "teacher",
            "task": run.task.name,
            "encoder": _digest(encoder),
            "rows": [len(sample), len(rows)],
            "recipe": asdict(recipe),
        }

        def make(place: Path) -> None:
            tokenizer = glue_models.load_tokenizer(encoder)
            model = glue_models.new_classifier(encoder, run.task, 1, recipe.seed, {}).to(self.device)
            checkpoint = place.with_suffix(".checkpoint")
            finetune(model, tokenizer, sample, recipe, say=f"{run.task.name} teacher", checkpoint=checkpoint)
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            checkpoint.unlink(missing_ok=True)

        return self._once(f"{run.task.name}-teacher", settings, make)

    def teacher_recipe(self) -> Recipe:
        """Return how a teacher is trained."""
        return Recipe(**TEACHER, max_length=MAX_LENGTH, dtype=self.training_dtype)

    def texts(self, run: Run) -> Sequence[tuple[str, ...]]:
        """Return what a run's teacher is asked about; raises ValueError where train rows give no such texts, or too
        few."""
        rows = self.train_rows(run).rows
        return substituted(rows, run.augmented) if run.augmented else rows

    def _mean(self, run: Run, what: str, parts: list[Path]) -> Path:
        """Return the directory of the model whose weights are the mean of those of `parts`."""
        settings = {"step": "mean", "models": [part.name for part in parts]}

        def make(place: Path) -> None:
            _, tokenizer = self.load(parts[0])
            glue_models.mean_weights([self.load(part)[0] for part in parts]).save_pretrained(place)
            tokenizer.save_pretrained(place)

        return self._once(f"{run.task.name}-{run.model}-{what}-{run.seeds}", settings, make)

    def fit(self, run: Run, stock: Path, heads: Mapping[str, Any] = FIT, most: int = FIT_ROWS) -> Path:
        """A stock model directory with heads fitted to its own answers on the texts it was trained on, no labels.

        Args:
            heads: their kind and pooling.
            most: the most texts.
        """
        rows = self.train_rows(run).sample(most)
        settings = {"step": "fit", "model": stock.name, "rows": len(rows), "heads": dict(heads), "seed": run.seed}

        def make(place: Path) -> None:
            model, tokenizer = self.load(stock)
            pf.fit(model, tokenizer, rows.rows, seed=run.seed, max_length=MAX_LENGTH, folder=place.parent, **heads)
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)

        return self._once(f"{stock.name}-fit", settings, make)

    def trace(self, run: Run, directory: Path, name: str, split: Split) -> Trace:
        """Return what every head of a model directory says of a fold's rows, with their labels."""
        settings = {"step": "trace", "model": directory.name, "fold": name, "rows": len(split)}

        def make(place: Path) -> None:
            model, tokenizer = self.load(directory)
            labels = split.labels if run.task.outputs == 1 else [int(label) for label in split.labels]
            pf.trace(model, tokenizer, split.rows, labels=labels, max_length=MAX_LENGTH).save(place / "trace")

        return Trace.load(self._once(f"{directory.name}-{name}", settings, make) / "trace")

    def logits(self, run: Run, directory: Path, name: str, split: Split) -> Tensor:
        """Return a stock model's logits of a fold's rows, [rows, classes] float32."""
        settings = {"step": "logits", "model": directory.name, "fold": name, "rows": len(split)}

        def make(place: Path) -> None:
            model, tokenizer = self.load(directory)
            logits = full_depth_logits(model, tokenizer, split.rows, max_length=MAX_LENGTH)
            save_file({"logits": logits}, place / "logits")

        return load_file(self._once(f"{directory.name}-{name}", settings, make) / "logits")["logits"]

    def load(self, directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return a step's model in evaluation mode, with its heads if it has any, and its tokenizer."""
        has_heads = "pabee_fast" in json.loads((directory / "config.json").read_text())
        load = pf.from_pretrained if has_heads else AutoModelForSequenceClassification.from_pretrained
        model = load(directory, dtype=torch.float32).eval().to(self.device)
        return model, glue_models.load_tokenizer(directory)

    def _once(self, name: str, settings: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """Return the folder that `make` has filled with these settings, now or before."""
        text = json.dumps(settings, indent=1, sort_keys=True)
        place = self.work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        if (place / "step.json").is_file():
            return place
        unfinished = place.with_name(f"{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        started = time.perf_counter()
        make(unfinished)
        (unfinished / "step.json").write_text(text + "\n")
        unfinished.rename(place)
        print(f"{place.name}: {time.perf_counter() - started:.0f} s", flush=True)
        return place
