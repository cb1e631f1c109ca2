"""Fine-tuning for the evaluation: a plain loop over length-grouped batches, fast on a CPU too.

A stock model learns by its own loss, a model with heads by the loss over all heads: both are what its forward returns.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.glue.tasks import Split
from pabee_fast.modeling.loss import Distillation
from pabee_fast.models.heads import answer_kind, has_heads

POOL = 50
"""Batches whose rows are sorted by length together: 5 % of the tokens are padding then, and batches stay mixed."""


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned: AdamW, linear warm-up, linear decay, gradients clipped to norm 1."""

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 8e-5
    warmup: float = 0.06
    weight_decay: float = 0.01
    max_length: int = 128
    seed: int = 0
    dtype: str = "float32"
    """Of the products, in mixed precision; weights and optimizer stay in float32."""


def choose_training_dtype(device: torch.device) -> str:
    """bfloat16 where the device multiplies it in hardware, else float32.

    Rows of sst2 a second and core, MiniLM-L6, in bfloat16 against float32: 140 against 67 on a CPU with AVX512-BF16, 5
    against 67 on one with AVX2 alone. (The runtime asks more, AMX, of a CPU that is to serve in bfloat16.)
    """
    if device.type == "cuda":
        has_products = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_products else "float32"


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    recipe: Recipe,
    *,
    say: str = "",
    checkpoint: Path | None = None,
    teacher_logits: Tensor | None = None,
    **objective: Any,
) -> PreTrainedModel:
    """Train in place and return the model in evaluation mode.

    Args:
        say: what progress is printed under; "": none is printed.
        checkpoint: a file that holds the state after the last whole epoch; training that was cut goes on from there,
            to the same weights.
        teacher_logits: [rows, classes] of a fine-tuned model, learned beside the labels as `pabee-fast train --teacher`
            does by default; None: there is no teacher. A row of NaN is learned by its label alone.
        **objective: passed to every forward: `self_distillation` of a model with heads.
    """
    device = model.device
    encoded = encode(tokenizer, split.rows, recipe.max_length)
    lengths = np.array([len(row["input_ids"]) for row in encoded])
    rng = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    steps = math.ceil(len(split) / recipe.batch_size) * recipe.epochs
    rising = max(1, round(recipe.warmup * steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    dtype = torch.long if model.config.num_labels > 1 else torch.float32
    model.train()
    started, step, total = time.perf_counter(), 0, torch.zeros((), device=device)
    done = 0
    if checkpoint is not None and checkpoint.is_file():
        done = _resume(checkpoint, model, optimizer, scheduler, rng)
        step = done * (steps // recipe.epochs)
    for epoch in range(done, recipe.epochs):
        for members in length_grouped(lengths, recipe.batch_size, rng):
            batch = padded([encoded[i] for i in members], tokenizer.pad_token_id or 0)
            batch["labels"] = torch.tensor([split.labels[i] for i in members], dtype=dtype)
            taught = None if teacher_logits is None else teacher_logits[members].to(device)
            if taught is not None and has_heads(model):  # whose loss takes them itself
                objective["teacher_logits"] = taught
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
                out = model(**{k: v.to(device) for k, v in batch.items()}, **objective)
            loss = out.loss
            if taught is not None and not has_heads(model):
                loss = Distillation().loss(loss, out.logits.float(), taught, answer_kind(model))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step, total = step + 1, total + loss.detach()
            if say and step % 100 == 0:
                seconds = time.perf_counter() - started
                print(f"{say}: step {step} of {steps}, loss {float(total) / 100:.4f}, {seconds:.0f} s", flush=True)
                total.zero_()
        if checkpoint is not None and epoch + 1 < recipe.epochs:
            _save(checkpoint, epoch + 1, model, optimizer, scheduler, rng)
    return model.eval()


def _save(path: Path, epochs: int, model: Any, optimizer: Any, scheduler: Any, rng: np.random.Generator) -> None:
    """Everything that the next epoch depends on, random states included; the file is there whole or not at all."""
    state = {
        "epochs": epochs,
        "parts": [part.state_dict() for part in (model, optimizer, scheduler)],
        "order": json.dumps(rng.bit_generator.state),
        "dropout": torch.get_rng_state(),
        "dropout_cuda": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
    }
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    part.rename(path)


def _resume(path: Path, model: Any, optimizer: Any, scheduler: Any, rng: np.random.Generator) -> int:
    """Bring back what `_save` wrote, and return how many epochs are done."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    for part, values in zip((model, optimizer, scheduler), state["parts"], strict=True):
        part.load_state_dict(values)
    rng.bit_generator.state = json.loads(state["order"])
    torch.set_rng_state(state["dropout"])
    if state["dropout_cuda"] is not None:
        torch.cuda.set_rng_state(state["dropout_cuda"], model.device)
    return state["epochs"]


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, ...]], max_length: int
) -> list[dict[str, list[int]]]:
    """Return the tokenizer's lists for each row, a text or a pair."""
    texts = [row if len(row) == 2 else row[0] for row in rows]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)
    return [dict(zip(encoded, lists, strict=True)) for lists in zip(*encoded.values(), strict=True)]


def length_grouped(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the rows' indices in batches of like length, in random order; the lengths are [rows]."""
    order, batches = rng.permutation(len(lengths)), []
    for first in range(0, len(order), batch_size * POOL):
        pool = order[first : first + batch_size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padded(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Return a batch as the stock model takes it, int64 [rows, longest], padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        fill = pad if name == "input_ids" else 0
        batch[name] = torch.tensor([[*row[name], *[fill] * (longest - len(row[name]))] for row in rows])
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    batch["attention_mask"] = torch.tensor(mask)
    return batch
