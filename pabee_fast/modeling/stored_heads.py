"""Heads as a model directory holds them, held against the config entry that promises them."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pabee_fast.errors import CheckpointError
from pabee_fast.modeling.directory import stored_tensors
from pabee_fast.models.head import POOLINGS
from pabee_fast.models.head_kinds import KINDS
from pabee_fast.models.heads import CONFIG_ENTRY, FORMATS, HEADS, has_heads, hash_of, spec_of

logger = logging.getLogger(__name__)


def lacks_its_heads(model: Any) -> bool:
    """Return whether it is a model whose config promises heads, and that transformers' own classes loaded without
    them."""
    return isinstance(model, PreTrainedModel) and hasattr(model.config, CONFIG_ENTRY) and not has_heads(model)


def add_stored_heads(model: PreTrainedModel) -> None:
    """Give a model the heads that its directory holds, which transformers' own classes load it without.

    Raises:
        CheckpointError: they are absent there, not those of its config, or of other layers or labels.
        InputError: the directory cannot be read.
    """
    path, config = model.config._name_or_path, model.config
    commit = getattr(config, "_commit_hash", None)
    _, heads = stored_tensors(path, {"revision": commit} if commit else {}, values_of=f"{HEADS}.")
    check_heads_of(path, config, heads)
    modules = spec_of(model).new_heads(model)
    modules.load_state_dict({name.removeprefix(f"{HEADS}."): values for name, values in heads.items()})
    setattr(model, HEADS, modules)
    logger.info("the heads of %s were read there, since it was loaded without them", path)


def check_heads_of(path: str, config: PretrainedConfig, stored: Mapping[str, Tensor]) -> None:
    """Hold the head tensors of a directory against its config.

    Args:
        path: the directory, in messages.
        config: with an entry that promises heads.
        stored: the tensors whose names begin as heads' do.

    Raises:
        CheckpointError: they are absent, not the config's, or of other layers or labels.
    """
    _check_values(path, getattr(config, CONFIG_ENTRY), stored)
    _check_settings(path, config)


def _check_values(path: str, entry: Any, stored: Mapping[str, Tensor]) -> None:
    """Hold the stored head tensors against the config entry that promises them."""
    if not isinstance(entry, Mapping) or entry.get("format") not in FORMATS:
        given = entry.get("format") if isinstance(entry, Mapping) else entry
        raise CheckpointError(
            f"{path}: heads of format {given!r}; this version reads {' and '.join(map(str, FORMATS))}"
        )
    promised = entry.get("shapes")
    is_known = entry.get("head") in KINDS and entry.get("pooling") in (*POOLINGS, None)
    if not isinstance(promised, Mapping) or not is_known or type(entry.get("first_layer", 1)) is not int:
        raise CheckpointError(
            f"{path}: the entry {CONFIG_ENTRY!r} of its config has no such shapes, head, pooling and first_layer as "
            "this version writes; save or fit it again"
        )
    if absent := sorted(promised.keys() - stored.keys()):
        raise CheckpointError(
            f"{path}: the config promises {len(promised)} head tensors and {len(absent)} are absent "
            f"({absent[0]}, ...): it was saved without pabee_fast, which drops heads; save it again from a model "
            "loaded by pf.from_pretrained"
        )
    shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
    if shapes != promised or hash_of(stored) != entry.get("sha256"):
        raise CheckpointError(f"{path}: its heads are not the ones its config describes; save or fit it again")


def _check_settings(path: str, config: PretrainedConfig) -> None:
    """Hold layers and labels against the config entry: heads of others would be new ones, which nobody has trained."""
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
