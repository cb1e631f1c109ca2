"""Reads checkpoints of the published PABEE code (huggingface/transformers-research-projects, bert-loses-patience)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from pabee_fast.errors import CheckpointError, InputError
from pabee_fast.models.heads import attach_heads, heads_of


def load_pabee_checkpoint(
    state_dict_or_path: Mapping[str, Tensor] | str | Path,
    config: PretrainedConfig | Mapping[str, Any] | str | Path,
    *,
    num_labels: int | None = None,
) -> PreTrainedModel:
    """A model with heads from the published code's state dict: `bert.*` or `albert.*`, and `classifiers.{i}.*`.

    Args:
        state_dict_or_path: the state dict, or a `.safetensors`, `.bin` or `.pt` file of it.
        config: of the backbone: a transformers config, its arguments with `model_type` among them, or a path.
        num_labels: where the config does not say it; otherwise read from the heads.

    Returns:
        The model in evaluation mode; `classifiers.{n-1}` is its own classifier, the others its exit heads.

    Raises:
        CheckpointError: heads that do not match the layers, missing or unknown tensors.
    """
    state = dict(_read_state(state_dict_or_path))
    if isinstance(config, str | Path):
        config = AutoConfig.from_pretrained(config)
    elif isinstance(config, Mapping):
        config = AutoConfig.for_model(**config)
    layers = config.num_hidden_layers
    names = sorted({name.split(".")[1] for name in state if name.startswith("classifiers.")}, key=int)
    if names != [str(i) for i in range(layers)]:
        raise CheckpointError(
            f"the checkpoint has heads {', '.join(names) or '(none)'} and the config {layers} layers: one head "
            "a layer is needed, classifiers.0 to classifiers.{n-1}; check config.num_hidden_layers"
        )
    classes = state["classifiers.0.weight"].shape[0]
    if num_labels not in (None, classes):
        raise CheckpointError(f"num_labels={num_labels}, but the checkpoint's heads have {classes} outputs")
    config.num_labels = classes
    model = attach_heads(AutoModelForSequenceClassification.from_config(config), head="pabee")
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("classifiers.")}
    # Older transformers saved this buffer; it holds 0, 1, 2, ...
    backbone = {name: tensor for name, tensor in backbone.items() if not name.endswith("embeddings.position_ids")}
    expected = {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}
    if expected != backbone.keys():
        missing, unknown = sorted(expected - backbone.keys()), sorted(backbone.keys() - expected)
        raise CheckpointError(
            f"the checkpoint lacks {missing[:3]} and has unknown {unknown[:3]}: is the config its own?"
        )
    try:
        model.load_state_dict(backbone, strict=False)
        for i, head in enumerate(heads_of(model)):
            head.load_state_dict({k: state[f"classifiers.{i}.{k}"] for k in ("weight", "bias")})
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not fit its config: {error}") from error
    return model.eval()


def _read_state(source: Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path} is not a file: give the checkpoint's .safetensors, .bin or .pt file")
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
