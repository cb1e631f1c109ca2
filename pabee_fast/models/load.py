"""Loading a model directory with heads, held against what its config promises."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils import cached_file

from pabee_fast.errors import CheckpointError, InputError, UnsupportedError
from pabee_fast.models.heads import CONFIG_ENTRY, FORMATS, HEADS, early_exit_class, hash_of
from pabee_fast.policies import Policy

HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Settings that say where a directory lies: config, heads and weights are all read there."""


def from_pretrained(path_or_id: str | Path, policy: Policy | None = None, **kwargs: Any) -> PreTrainedModel:
    """Loads a Hugging Face model directory with heads.

    Args:
        path_or_id: a directory or hub id, as `AutoModelForSequenceClassification.from_pretrained` takes it.
        policy: accelerates the model with it; None leaves the model at full depth, whatever `pabee-fast tune` stored
            with it (`pf.guarantee_of(model).policy`).
        **kwargs: passed on (dtype, device_map, revision, ...), settings of the config among them (problem_type, ...).
            Hub code is never run: `trust_remote_code` is refused.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: no heads in it, heads that its config promises are absent, they are not the config's, or they
            do not fit a number of layers or labels that was given.
    """
    if kwargs.pop("trust_remote_code", False):
        raise InputError("trust_remote_code=True: only the families that pabee_fast names are loaded")
    if kwargs.pop("output_loading_info", False):
        raise InputError("output_loading_info=True: the model alone is returned; ask its stock class for that")
    hub: dict[str, Any] = {k: kwargs[k] for k in HUB if k in kwargs}
    config = kwargs.pop("config", None)
    if config is None:
        # It takes what is the config's, problem_type say, as in transformers; a dtype "auto" is the loader's to read.
        precision = {k: kwargs.pop(k) for k in ("dtype", "torch_dtype") if k in kwargs}
        config, rest = AutoConfig.from_pretrained(path_or_id, return_unused_kwargs=True, **kwargs)
        kwargs = rest | hub | precision
    tables = (AutoModelForSequenceClassification._model_mapping, AutoModelForImageClassification._model_mapping)
    stock = next((_get_model_class(config, table) for table in tables if type(config) in table), None)
    if stock is None:
        raise UnsupportedError(f"{path_or_id}: transformers has no classifier for {type(config).__name__}")
    if not hasattr(config, CONFIG_ENTRY):
        raise CheckpointError(
            f"{path_or_id} has no heads (no {CONFIG_ENTRY!r} in its config): fit some with `pabee-fast fit`, train "
            "some with `pabee-fast train`, or load it with transformers, pf.attach_heads(model), and train"
        )
    _check_heads(str(path_or_id), getattr(config, CONFIG_ENTRY), hub, kwargs.get("variant"))
    _check_settings(str(path_or_id), config)
    model = early_exit_class(stock).from_pretrained(path_or_id, config=config, **kwargs).eval()
    if policy is not None:
        from pabee_fast.runtime.forward import accelerate

        accelerate(model, policy)
    return model


def _check_settings(path: str, config: PretrainedConfig) -> None:
    """Holds layers and labels against the config entry: heads of others would be new ones, which nobody has trained."""
    entry = getattr(config, CONFIG_ENTRY)
    numbers = {name.split(".")[1] for name in entry["shapes"]}  # exit_heads.0.weight
    layers, labels = entry.get("first_layer", 1) + len(numbers), config.num_labels
    if numbers:
        labels = entry["shapes"][f"{HEADS}.0.weight"][0]
    if (layers, labels) != (config.num_hidden_layers, config.num_labels):
        raise CheckpointError(
            f"{path}: its heads are of {layers} layers and {labels} labels, and its config, with the settings given, "
            f"says {config.num_hidden_layers} and {config.num_labels}; leave num_hidden_layers and num_labels out"
        )


def _check_heads(path: str, entry: Mapping[str, Any], hub: Mapping[str, Any], variant: str | None) -> None:
    """Holds the stored head tensors against the config entry that promises them."""
    if entry.get("format") not in FORMATS:
        raise CheckpointError(
            f"{path}: heads of format {entry.get('format')!r}; this version reads {' and '.join(map(str, FORMATS))}"
        )
    stored = {name: read() for name, read in _stored_tensors(path, hub, variant) if name.startswith(f"{HEADS}.")}
    absent = sorted(entry["shapes"].keys() - stored.keys())
    if absent:
        raise CheckpointError(
            f"{path}: the config promises {len(entry['shapes'])} head tensors and {len(absent)} are absent "
            f"({absent[0]}, ...): it was saved without pabee_fast, which drops heads; save it again from a model "
            "loaded by pf.from_pretrained"
        )
    shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
    if shapes != entry["shapes"] or hash_of(stored) != entry["sha256"]:
        raise CheckpointError(f"{path}: its heads are not the ones its config describes; save or fit it again")


def _stored_tensors(
    path: str, hub: Mapping[str, Any], variant: str | None = None
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every tensor of a model directory's safetensors, one file or several, by name; read when called."""

    def named(file: str) -> str:
        stem, _, ending = file.rpartition(".")
        return f"{stem}.{variant}.{ending}" if variant else file

    lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": False}
    index = cached_file(path, named("model.safetensors.index.json"), **lenient, **hub)
    names = [named("model.safetensors")]
    if index is not None:
        names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    for name in names:
        file = cached_file(path, name, **lenient, **hub)
        if file is None:
            raise CheckpointError(f"{path} holds no {name}: weights are read from safetensors only")
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield key, functools.partial(tensors.get_tensor, key)
