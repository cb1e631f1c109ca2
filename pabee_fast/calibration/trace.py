"""A trace: every head's logits for every row of a data set, from one run of the model at full depth."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.calibration.learned_rows import LearnedRows
from pabee_fast.errors import CheckpointError, InputError
from pabee_fast.models.heads import has_heads, heads_of
from pabee_fast.policies import AnswerKind, FullDepth
from pabee_fast.scoring.conditions import Conditions, model_fingerprint
from pabee_fast.scoring.scorer import Row, Scorer, row_source
from pabee_fast.scoring.stretches import mean_of, places_of, sum_of

FORMAT = "1"
TENSORS = ("logits", "lengths", "labels", "learned", "stretches", "stretch_logits", "stretch_lengths")
"""Of a `Trace`; a file holds those that are not None."""
OF_LAYERS = ("logits", "stretch_logits")
"""Of these, those whose first dimension is layers."""


@dataclass(frozen=True)
class Trace:
    """Every head's logits for every row, and what is needed to judge a policy by them.

    Where long texts were read in stretches, `logits` are the means of the stretches', and `lengths` their sums; the
    stretches' own tell when each would have left.
    """

    logits: Tensor  # [layers, rows, classes] float32
    lengths: Tensor  # [rows] int64, tokens
    kind: AnswerKind
    conditions: Conditions
    labels: Tensor | None = None  # [rows] int64 or float32, or [rows, classes] of a label set
    first_layer: int = 1  # the first with a head; logits of layers before it are NaN
    learned: Tensor | None = None  # [rows] int8, flags of training.learned_rows: whether the model has learned from it
    stretches: Tensor | None = None  # [rows] int64: how many each row was read in; None: each is one, as it is cut
    stretch_logits: Tensor | None = None  # [layers, stretches, classes] float32, row after row
    stretch_lengths: Tensor | None = None  # [stretches] int64
    texts_hash: str | None = None  # `hash_of_texts` of all rows; None: not known

    @property
    def layers(self) -> int:
        """How many heads there are, the model's own included."""
        return self.logits.shape[0]

    @property
    def classes(self) -> int:
        """How many outputs a head has."""
        return self.logits.shape[2]

    def __len__(self) -> int:
        return self.logits.shape[1]

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels"
        return f"Trace({len(self)} rows, {self.layers} layers, {self.classes} outputs, {self.kind} answers, {labels})"

    def select(self, rows: Tensor) -> "Trace":
        """Return the trace of some of the rows: int64 indices, or bool flags."""
        labels, learned = (None if of_rows is None else of_rows[rows] for of_rows in (self.labels, self.learned))
        found = replace(
            self,
            logits=self.logits[:, rows],
            lengths=self.lengths[rows],
            labels=labels,
            learned=learned,
            texts_hash=None,
        )
        if self.stretches is None:
            return found
        runs, places = self.runs, places_of(rows, self.stretches)
        return replace(
            found,
            stretches=self.stretches[rows],
            stretch_logits=runs.logits[:, places],
            stretch_lengths=runs.lengths[places],
        )

    @property
    def runs(self) -> "Trace":
        """The trace of what runs through the model, one by one: of the stretches, or of the rows themselves."""
        if self.stretch_logits is None or self.stretch_lengths is None:
            return self
        return Trace(
            self.stretch_logits, self.stretch_lengths, self.kind, self.conditions, first_layer=self.first_layer
        )

    def __add__(self, other: "Trace") -> "Trace":
        """Return the rows of both; what is not known of the rows of one (labels, whether they were learned from) is
        left out.

        Raises:
            InputError: the other is of another model, or was made otherwise.
        """
        differences = self.conditions.differences(other.conditions)
        if differences or self.logits[:, :0].shape != other.logits[:, :0].shape:
            raise InputError(f"traces made otherwise cannot be joined: {'; '.join(differences) or 'other heads'}")
        found: dict[str, Any] = {}
        for name in TENSORS:
            one, more = getattr(self, name), getattr(other, name)
            known = one is not None and more is not None
            found[name] = torch.cat([one, more], dim=1 if name in OF_LAYERS else 0) if known else None
        return replace(self, **found, texts_hash=None)

    def save(self, path: str | Path) -> None:
        """Write the trace as one safetensors file; raises InputError where there is no directory for it."""
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no directory {Path(path).absolute().parent}")
        tensors = {name: of_rows.contiguous() for name in TENSORS if (of_rows := getattr(self, name)) is not None}
        about = {"format": FORMAT, "kind": self.kind, "conditions": json.dumps(asdict(self.conditions))}
        about |= {} if self.texts_hash is None else {"texts_hash": self.texts_hash}
        save_file(tensors, path, about | {"first_layer": str(self.first_layer)})

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file.
            CheckpointError: the file is no trace.
        """
        if not Path(path).is_file():
            raise InputError(f"{path} is not a file: give a trace that pabee-fast trace, or pf.trace(...).save, wrote")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no trace ({error}): make one with pabee-fast trace") from error
        if about.get("format") != FORMAT or not {"logits", "lengths"} <= tensors.keys() or "conditions" not in about:
            raise CheckpointError(f"{path} is no trace of this version: make one with pabee-fast trace")
        kind: Any = about["kind"]
        conditions = Conditions(**json.loads(about["conditions"]))
        first_layer = int(about.get("first_layer", 1))
        found: dict[str, Any] = {name: tensors.get(name) for name in TENSORS}
        hashed = about.get("texts_hash")
        return cls(**found, kind=kind, conditions=conditions, first_layer=first_layer, texts_hash=hashed)

    def check_conditions(self, now: Conditions, name: object = "the trace") -> None:
        """Raise InputError unless the trace was made under the conditions of `now`, a scorer's say; `name` is what
        messages call it."""
        if differences := self.conditions.differences(now):
            raise InputError(f"{name} was not made with this model: {'; '.join(differences)}; make a new trace")

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise InputError unless the trace was made with this very model, in this precision."""
        if model_fingerprint(model) != self.conditions.model:
            raise InputError(
                f"the trace is of another model, or of this one in another precision than {self.conditions.dtype}: "
                "make a new one with pf.trace"
            )


@torch.no_grad()
def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    *,
    labels: Sequence[int] | Sequence[float] | Tensor | None = None,
    max_length: int | None = None,
    token_budget: int | None = None,
    window: int = 8_192,
    stride: int | None = None,
) -> Trace:
    """Run a model with heads once at full depth and keep what every head says of every row.

    Args:
        model: with heads, in evaluation mode.
        tokenizer: its fast tokenizer.
        rows: texts, or pairs of texts.
        labels: one a row: class ids, values (one output), or 0/1 lists (label sets); None: there are none.
        max_length, token_budget, window, stride: as for `Scorer`.

    Raises:
        InputError: no heads, no rows, a row that cannot be scored, or labels that do not fit the rows or the model.
    """
    if not has_heads(model):
        heads_of(model)  # says how to add them
    scorer = Scorer(
        model,
        tokenizer,
        policy=FullDepth(),
        max_length=max_length,
        token_budget=token_budget,
        window=window,
        stride=stride,
    )
    engine, source, parts, lengths, stretches, done, cut = scorer.engine, row_source(rows), [], [], [], 0, 0
    sketch, flags, texts, hashed = LearnedRows.of(model.config), [], set(), sha256()
    while taken := list(islice(source, window)):
        encoded = scorer.encode(taken, done)
        assert encoded.batch is not None
        parts.append(engine.every_head(encoded.batch).cpu())
        lengths.append(torch.from_numpy(encoded.batch.lengths))
        if encoded.stretches is not None:
            stretches.append(torch.from_numpy(encoded.stretches))
        done, cut = done + len(taken), cut + encoded.truncated
        if sketch is not None:
            flags.append(torch.from_numpy(sketch.flags(taken)))
        hash_texts(hashed, taken)
        texts |= {1 if isinstance(row, str) else len(row or ()) for row in taken}
    if not parts:
        raise InputError("rows is empty: a trace needs at least one row")
    scorer.tell_of_cut(cut, done)
    logits, tokens = torch.cat(parts, dim=1), torch.cat(lengths)
    of_stretches: dict[str, Tensor] = {}
    if stretches:
        counts = torch.cat(stretches)
        of_stretches = {"stretches": counts, "stretch_logits": logits, "stretch_lengths": tokens}
        logits, tokens = mean_of(logits, counts), sum_of(tokens, counts)
    found = checked_labels(labels, logits, engine.kind)
    conditions = Conditions.of(model, tokenizer, scorer.max_length, texts.pop() if len(texts) == 1 else None, stride)
    learned = torch.cat(flags) if flags else None
    return Trace(
        logits,
        tokens,
        engine.kind,
        conditions,
        found,
        engine.first_head,
        learned,
        **of_stretches,
        texts_hash=hashed.hexdigest(),
    )


def hash_of_texts(rows: Iterable[Row]) -> str:
    """Return a hash of rows in their order, by which a trace knows them again."""
    hashed = sha256()
    hash_texts(hashed, rows)
    return hashed.hexdigest()


def hash_texts(hashed: Any, rows: Iterable[Row]) -> None:
    """Add rows to a hash."""
    for row in rows:
        hashed.update(json.dumps([row] if isinstance(row, str) else list(row or ())).encode())


def checked_labels(given: Sequence[int] | Sequence[float] | Tensor | None, logits: Tensor, kind: str) -> Tensor | None:
    """Return labels as a trace of these logits holds them; raises InputError for those that do not fit."""
    if given is None:
        return None
    try:
        labels = torch.as_tensor(given.tolist() if hasattr(given, "tolist") else given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels cannot be read as numbers ({error}): give ids, values, or 0/1 lists") from error
    labels = labels.long() if labels.dtype == torch.bool else labels
    _, rows, classes = logits.shape
    shape = (rows, classes) if kind == "label_set" else (rows,)
    if labels.shape != shape:
        raise InputError(f"labels is {list(labels.shape)} for {rows} rows of {kind} answers: give {list(shape)}")
    if kind == "value":
        values = labels.float()
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            raise InputError(f"labels hold {values[row]} at row {row}: give finite numbers, or leave such rows out")
        return values
    low, high = float(labels.min()), float(labels.max())
    most = 1 if kind == "label_set" else classes - 1
    # A label set's 0 and 1 may come as floats, as losses take them.
    if (labels != labels.round()).any() or (labels.is_floating_point() and kind == "label") or low < 0 or high > most:
        raise InputError(
            f"labels hold {low:g} to {high:g} ({labels.dtype}): the model's are whole numbers from 0 to {most}"
        )
    return labels.long()
