"""Exits for a fine-tuned model as it is: the backbone is frozen, and heads learn to answer as the whole model does."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.arguments import require_between, require_seed, require_share
from pabee_fast.calibration.alike import MOST_ROWS, warn_of_alike_heads
from pabee_fast.calibration.learned_rows import LearnedRows, remember
from pabee_fast.errors import InputError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.kernels.reference import ACTIVATIONS
from pabee_fast.modeling.early_exit import Model, replace_heads
from pabee_fast.models import family_of
from pabee_fast.models.head_kinds import HeadSpec
from pabee_fast.models.heads import CONFIG_ENTRY, FIT, HEADS, MAX_LENGTH, answer_kind
from pabee_fast.policies import AnswerKind
from pabee_fast.scoring.scorer import Row, row_source
from pabee_fast.scoring.stretches import texts_of
from pabee_fast.training.features import FeatureStore, run_once
from pabee_fast.training.fit_head import Targets, asked, fit_linear, fit_pooled, rescale

LEAST_ROWS = 20

logger = logging.getLogger(__name__)


def fit(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    labels: Sequence[Any] | Tensor | None = None,
    *,
    head: str = "linear",
    pooling: str | None = "mean",
    first_layer: int = 1,
    alpha: float = 0.5,
    held_out: float = 0.1,
    seed: int = 0,
    max_length: int | None = None,
    token_budget: int | None = None,
    stride: int | None = None,
    folder: str | Path | None = None,
    remember_rows: bool = True,
    onto: Model | None = None,
    on_window: Callable[[int], None] = lambda rows: None,
    on_head: Callable[[int], None] = lambda layer: None,
) -> Model:
    """Give a fine-tuned classifier heads that answer as it does at full depth, in place; labels are not needed.

    The rows are run once and their features kept on disk (`training.features` says how much); then one head after the
    other is trained on the model's own probabilities or values. The rows held out choose how strongly it is regularised
    and one temperature for it (one-output models: scale and shift), which is folded into its weights, so that scores
    mean the same at every layer. Nothing else of the model changes: its answers at full depth stay what they were, bit
    for bit.

    Args:
        model: a fine-tuned `*ForSequenceClassification` model of a supported family, in evaluation mode. Heads that it
            has are replaced.
        tokenizer: its fast tokenizer.
        rows: texts, or pairs of texts, like those it will score. Rows it was not fine-tuned on are better: it is surer
            of those it knows.
        labels: one a row: class ids, values (one output), or 0/1 lists (label sets), None or NaN where there is none;
            or None.
        head, pooling, first_layer: see `attach_heads`.
        alpha: the share of the model's own answers in what is learned of a row with a label, 0 to 1.
        held_out: the share of the rows that is held out.
        seed: of the choice of these rows, and of heads with a pooler of their own.
        max_length, token_budget, stride: as for `Scorer`; a stretch is learned from as a row of its own, with the label
            of its text.
        folder: where the features are kept meanwhile; None: where temporary files go (TMPDIR).
        remember_rows: whether the config keeps hashes of at most 1,024 rows, so that `calibrate` can tell whether it is
            given rows that the heads know. Whoever has a text can tell by them whether it was among the rows.
        onto: what is given the heads in place of `model`: the same model in a higher precision, which keeps theirs.
        on_window, on_head: told how many rows have been run, and which layer's head is done.

    Returns:
        The model with the heads, the same object. Its `config.pabee_fast["fit"]` says what was found: how many `rows`
        there were, `labelled` and `held_out`, with a stride in how many `stretches` they were read, and of each of the
        `heads` its `layer`, its `temperature` and its `agreement` with full depth on the rows held out; of one-output
        models its `scale`, its `shift` and the mean absolute `difference`.

    Raises:
        InputError: fewer than 20 rows, a row that cannot be scored, features that are not finite, labels that do not
            fit the rows or the model or are all of one class, or an option out of range.
        UnsupportedError: no supported family.
    """
    spec, kind = HeadSpec.of(model, head, pooling, first_layer), answer_kind(model)
    require_between("alpha", alpha, 0, 1)
    require_share("held_out", held_out)
    require_seed(seed)
    known = None if labels is None else _as_targets(labels, model.config.num_labels, kind)
    target = model if onto is None else onto
    if _shape(target.config) != _shape(model.config):
        raise InputError(f"onto has {_shape(target.config)}, and the model {_shape(model.config)}: give the same model")
    learned, source = LearnedRows() if remember_rows else None, row_source(rows)
    with FeatureStore(first_layer, folder) as store:
        length, counts = run_once(
            store,
            model,
            tokenizer,
            source if learned is None else learned.watch(source),
            pooling=spec.pooling,
            max_length=max_length,
            token_budget=token_budget,
            stride=stride,
            on_window=on_window,
        )
        count = len(counts)
        if count < LEAST_ROWS:
            raise InputError(f"{count} row(s) to fit by: give at least {LEAST_ROWS}, and thousands for good exits")
        if known is not None and len(known) != count:
            raise InputError(f"labels has {len(known)} entries for {count} rows: give one for each, or None")
        aside = _choose(count, held_out, seed)
        if (left := count - int(aside.sum())) < LEAST_ROWS // 2:
            raise InputError(f"held_out={held_out!r} leaves {left} of {count} rows to learn from: hold out fewer")
        of = texts_of(counts)  # the row of each stretch
        each = None if known is None else known[of]
        targets = Targets.of(kind, store.logits, each, alpha=alpha, held_out=aside[of]).to(model.device)
        heads, found, outputs = [], [], []
        for layer in range(first_layer, model.config.num_hidden_layers):
            fitted, answered, figures = _fit_head(model, spec, store, layer, targets, seed)
            heads.append(fitted)
            outputs.append(answered[:MOST_ROWS].cpu())
            found.append({"layer": layer, **figures})
            on_head(layer)
        warn_of_alike_heads(logger, [*outputs, store.logits[:MOST_ROWS]], kind, first_layer)
    labelled = 0 if known is None else int((~known.isnan()).all(dim=1).sum())
    replace_heads(target, spec)
    with torch.no_grad():
        for new, fitted in zip(getattr(target, HEADS), heads, strict=True):
            new.load_state_dict(fitted.state_dict())
    getattr(target.config, CONFIG_ENTRY)[MAX_LENGTH] = length
    getattr(target.config, CONFIG_ENTRY)[FIT] = {
        "rows": len(aside), "labelled": labelled, "held_out": int(aside.sum()), "heads": found,
        **({} if stride is None else {"stretches": int(counts.sum())}),
    }  # fmt: skip
    remember(target.config, HEADS, learned)
    return target


def _shape(config: Any) -> str:
    """Return what heads depend on, in words."""
    return f"{config.num_hidden_layers} layers of {config.hidden_size} and {config.num_labels} labels"


def _choose(rows: int, share: float, seed: int) -> Tensor:
    """Return [rows] bool: a random share of them, at least one and not all."""
    chosen = torch.zeros(rows, dtype=torch.bool)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    chosen[order[: min(max(1, round(share * rows)), rows - 1)]] = True
    return chosen


def _fit_head(
    model: PreTrainedModel, spec: HeadSpec, store: FeatureStore, layer: int, targets: Targets, seed: int
) -> tuple[nn.Linear, Tensor, dict[str, float]]:
    """Yield the head of one layer in float32, its logits for all rows, and what is recorded of it."""
    read = _read(model, spec)

    def parts() -> Iterator[tuple[slice, Tensor]]:
        for rows, features in store.parts(layer):
            yield rows, read(features)

    if spec.head == "own-pooler":
        head: nn.Linear = fit_pooled(parts, lambda rows: read(store.take(layer, rows)), targets, seed)
    else:
        head = fit_linear(parts, targets)
    factor, shift = rescale(head, parts, targets)
    answered = asked(head, parts)
    outputs, full = (values[targets.held_out] for values in (answered, targets.answers))
    if targets.kind == "value":
        return head, answered, {"scale": factor, "shift": shift, "difference": float((outputs - full).abs().mean())}
    same = outputs.argmax(1) == full.argmax(1) if targets.kind == "label" else ((outputs > 0) == (full > 0.5)).all(1)
    return head, answered, {"temperature": factor, "agreement": float(same.float().mean())}


def _read(model: PreTrainedModel, spec: HeadSpec) -> Callable[[Tensor], Tensor]:
    """From stored features to what a head's linear takes, [rows, width] float32 on the model's device."""
    pooler = family_of(model).pooler(model) if spec.head == "pabee" else None
    if pooler is None:
        return lambda features: features.to(model.device)
    if not isinstance(pooler, Pooler):
        return lambda features: pooler(features.to(model.device, model.dtype)).float()
    weight, bias = pooler.weight.detach().float(), None if pooler.bias is None else pooler.bias.detach().float()
    activate = ACTIVATIONS[pooler.activation]
    return lambda features: activate(linear(features.to(model.device), weight, bias))


def _as_targets(labels: Sequence[Any] | Tensor, classes: int, kind: AnswerKind) -> Tensor:
    """Return [rows, classes] float32: one-hot, 0 and 1 of a label set, or values; NaN where a row has no label.

    Raises:
        InputError: they do not fit the model, or are all of one class.
    """
    try:
        given: list[Any] = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    except TypeError:
        raise InputError(f"labels is a {type(labels).__name__}: give a list, one for each row") from None
    out = torch.full((len(given), classes), float("nan"))
    for row, label in enumerate(given):
        if label is None or (isinstance(label, Real) and math.isnan(label)):
            continue
        if kind == "label":
            if label not in range(classes):
                raise InputError(f"labels, row {row}: {label!r} is no class id; the model's are 0 to {classes - 1}")
            out[row] = 0.0
            out[row, int(label)] = 1.0
            continue
        values = label if isinstance(label, Sequence) and not isinstance(label, str) else [label]
        are_finite = all(isinstance(value, Real) and math.isfinite(value) for value in values)
        if len(values) != classes or not are_finite:
            raise InputError(f"labels, row {row}: {label!r}; give {classes} finite number(s)")
        if kind == "label_set" and not set(values) <= {0, 1}:
            raise InputError(f"labels, row {row}: {label!r}; give 0 or 1 for each of the {classes} labels")
        out[row] = torch.tensor(values)
    seen = out[~out.isnan().any(dim=1)]
    if kind == "label" and len(seen) and len(seen.argmax(dim=1).unique()) < 2:
        raise InputError(
            f"labels are all {int(seen[0].argmax())}: heads need two classes or more to tell apart; give labels of "
            "several classes, or none"
        )
    return out
