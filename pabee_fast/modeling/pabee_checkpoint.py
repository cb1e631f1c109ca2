"""Reads checkpoints of the published PABEE code (huggingface/transformers-research-projects, bert-loses-patience)."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from pabee_fast.errors import CheckpointError, InputError
from pabee_fast.modeling.directory import few_of, read_config
from pabee_fast.modeling.early_exit import attach_heads
from pabee_fast.modeling.load import check_finite
from pabee_fast.models.heads import heads_of


def load_pabee_checkpoint(
    state_dict_or_path: Mapping[str, Tensor] | str | Path,
    config: PretrainedConfig | Mapping[str, Any] | str | Path,
) -> PreTrainedModel:
    """Return a model with heads from the published code's state dict: `bert.*` or `albert.*`, and `classifiers.{i}.*`.

    Args:
        state_dict_or_path: the state dict, or a `.safetensors`, `.bin` or `.pt` file of it.
        config: of the backbone: a transformers config, its arguments with `model_type` among them, or a path. How many
            labels there are is read from the heads.

    Returns:
        The model in evaluation mode; `classifiers.{n-1}` is its own classifier, the others its exit heads.

    Raises:
        CheckpointError: a file that cannot be read, heads that do not match the layers, missing or unknown tensors,
            values that are not finite.
        InputError: there is no such file.
    """
    state = dict(_read_state(state_dict_or_path))
    if isinstance(config, str | Path):
        config, _ = read_config(config)
    elif isinstance(config, Mapping):
        config = AutoConfig.for_model(**config)
    config, layers = copy.deepcopy(config), config.num_hidden_layers  # the caller's gets no heads
    found = {name for name in state if name.startswith("classifiers.")}
    wanted = {f"classifiers.{i}.{part}" for i in range(layers) for part in ("weight", "bias")}
    if found != wanted:
        raise CheckpointError(
            f"the config has {layers} layers; of heads classifiers.0 to classifiers.{layers - 1} the checkpoint lacks "
            f"{few_of(wanted - found)} and has {few_of(found - wanted)} beside them: check config.num_hidden_layers"
        )
    config.num_labels = len(state["classifiers.0.bias"])
    model = attach_heads(AutoModelForSequenceClassification.from_config(config), head="pabee")
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("classifiers.")}
    # Older transformers saved this buffer; it holds 0, 1, 2, ...
    backbone = {name: tensor for name, tensor in backbone.items() if not name.endswith("embeddings.position_ids")}
    expected = {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}
    if expected != backbone.keys():
        raise CheckpointError(
            f"the checkpoint lacks {few_of(expected - backbone.keys())} and has {few_of(backbone.keys() - expected)} "
            "beside the config's tensors: is it the config of this checkpoint?"
        )
    try:
        model.load_state_dict(backbone, strict=False)
        for i, head in enumerate(heads_of(model)):
            head.load_state_dict({k: state[f"classifiers.{i}.{k}"] for k in ("weight", "bias")})
    except RuntimeError as error:
        first = [*str(error).splitlines()[1:2], str(error)][0].strip()  # a line for each tensor, below a heading
        raise CheckpointError(f"the checkpoint does not fit its config: {first}") from error
    check_finite("the checkpoint", model)
    return model.eval()


def _read_state(source: Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path} is not a file: give the checkpoint's .safetensors, .bin or .pt file")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # readers of broken files raise whatever their parts do
        raise CheckpointError(f"{path} cannot be read as a state dict: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict: save model.state_dict() alone, not what stands around it")
    return state
