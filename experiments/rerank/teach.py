"""A reranker's heads and layers that learn together what the whole model scores candidates.

Heads over layers that are frozen are bounded by what these tell; so that the layers learn too, the first ones alone to
begin with, where a step costs half. No label is needed, and dropout is off: a regression on one pass over many rows.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.glue.train import encode, length_grouped, padded


@dataclass(frozen=True)
class Lesson:
    """How it learns: AdamW on the squared distance to the scores, warm-up, linear decay, gradients clipped to norm 1.

    Args:
        lower: so many layers learn alone first.
        lower_epochs, epochs: passes over the rows, of these and then of all layers.
        lower_rate, rate: peak learning rates.
        own_share: how much of an inner head's target is what the last head says now, beside the first model's score.
    """

    lower: int = 3
    lower_epochs: int = 1
    epochs: int = 1
    lower_rate: float = 1.5e-4
    rate: float = 1e-4
    own_share: float = 0.5
    batch_size: int = 32
    warmup: int = 30
    seed: int = 0


def teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[str, str]],
    scores: Tensor,
    lesson: Lesson,
    max_length: int,
) -> PreTrainedModel:
    """Train in place, and return the model in evaluation mode.

    Args:
        model: a BERT with linear heads over the mean token and one output.
        scores: [pairs] float32, of the model before.
    """
    encoded = encode(tokenizer, pairs, max_length)
    lengths = np.array([len(row["input_ids"]) for row in encoded])
    backbone = model.base_model
    layers = backbone.encoder.layer
    backbone.embeddings.word_embeddings.weight.requires_grad_(False)  # half of all weights, and no reader's business
    for depth, epochs, rate in (
        (lesson.lower, lesson.lower_epochs, lesson.lower_rate),
        (len(layers), lesson.epochs, lesson.rate),
    ):
        backbone.encoder.layer, rng = layers[:depth], np.random.default_rng([lesson.seed, depth])
        batches = [batch for _ in range(epochs) for batch in length_grouped(lengths, lesson.batch_size, rng)]
        _learn(model, depth == len(layers), batches, encoded, scores, rate, lesson, tokenizer.pad_token_id or 0)
    backbone.encoder.layer = layers
    model.requires_grad_(True)
    return model.eval()


def _learn(
    model: PreTrainedModel,
    has_all: bool,
    batches: list[np.ndarray],
    encoded: list[dict[str, list[int]]],
    scores: Tensor,
    rate: float,
    lesson: Lesson,
    pad: int,
) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), fused=True)
    steps, warmup = len(batches), lesson.warmup
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    model.eval()
    started, seen = time.process_time(), []
    for step, members in enumerate(batches, 1):
        batch, target = padded([encoded[row] for row in members], pad), scores[members]
        with _states(model) as states:
            last = model(**batch).logits[:, 0]
        shown = batch["attention_mask"][..., None]
        means = [(state * shown).sum(1) / shown.sum(1) for state in states]
        inner = [head(mean)[:, 0] for head, mean in zip(model.exit_heads, means, strict=False)]
        if has_all:
            losses = [mse_loss(of, target.lerp(last.detach(), lesson.own_share)) for of in inner]
            losses.append(mse_loss(last, target))
        else:
            losses = [mse_loss(of, target) for of in inner]
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        seen.append([float(loss.detach()) for loss in losses])
        if step % 100 == 0 or step == steps:
            each = " ".join(f"{loss:.3f}" for loss in np.mean(seen, axis=0))
            took = time.process_time() - started
            print(f"step {step} of {steps}: losses of heads {each}, {took:.0f} s of the processor", flush=True)
            seen.clear()


@contextlib.contextmanager
def _states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Give a list that collects what every layer puts out, [rows, longest, hidden_size], while the model runs.

    transformers' own `output_hidden_states` goes on to watch the layers that there were at the first call.
    """
    found: list[Tensor] = []
    layers = model.base_model.encoder.layer
    hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
