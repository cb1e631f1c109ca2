"""What lies in a model directory, read at the one edge where broken ones are found.

A config and a tokenizer are what somebody else wrote, and transformers, tokenizers and safetensors raise whatever their
parts do where they are malformed. What the files' headers say is compared before memory is taken for a model.
"""

import copy
import functools
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from pabee_fast.errors import CheckpointError, InputError, PabeeFastError

HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Settings that say where a directory lies: config, heads and weights are all read there."""

REPEATED = ("num_hidden_layers", "n_layer", "n_layers", "num_hidden_groups", "inner_group_num")
"""Numbers in a config of which each is so many modules, whatever their size."""
COUNTS = (*REPEATED, "num_attention_heads", "num_key_value_heads", "n_head", "n_heads")
"""Numbers in a config of which a model has one at least."""
DEEPEST = 1_000
"""Layers or labels that are not counted: ALBERT's layers share their tensors, so these do not say how many."""
SPARE = 2**28
"""Values that a model may hold beside twice the stored ones: a new classifier, and buffers that no file holds."""

OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""What a config may name: transformers fetches other attention from the hub, flash_attention_2 too if it must."""

logger = logging.getLogger(__name__)


@contextmanager
def readable(where: str, note: str = "") -> Iterator[None]:
    """Turn what a broken directory makes transformers, tokenizers or safetensors raise into an InputError.

    Args:
        where: the directory, in the message.
        note: what the message says first.
    """
    try:
        yield
    except (PabeeFastError, MemoryError, torch.OutOfMemoryError):
        raise
    except SafetensorError as error:
        raise InputError(
            f"{where} has weights that are no safetensors ({error}): a download that was cut, or a pointer of git LFS "
            "(git lfs pull); fetch them anew"
        ) from error
    except BaseException as error:  # there is no list of what these libraries raise: a KeyError, a bare Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of code in Rust
            raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise InputError(f"{where} cannot be loaded ({note}{kind}{error})") from error


def find_file(path: str, name: str, hub: Mapping[str, Any]) -> str | None:
    """Return where a file of a directory or hub id lies on this machine; None where there is none of that name."""
    not_raised = ("missing_entries", "gated_repo", "connection_errors")
    return cached_file(path, name, **{f"_raise_exceptions_for_{what}": False for what in not_raised}, **hub)


def stored_tensors(
    path: str, hub: Mapping[str, Any], variant: str | None = None, values_of: str | None = None
) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Return what a directory's safetensors hold, one file or several; nothing where there are none.

    Args:
        values_of: how the names of the tensors begin that are read; of the others, the headers alone are.

    Returns:
        Every tensor's shape by name, and the tensors that were read.

    Raises:
        CheckpointError: a file that the index names is absent.
        InputError: an index or a file that cannot be read.
    """

    def find(file: str) -> str | None:
        stem, _, ending = file.rpartition(".")
        return find_file(path, f"{stem}.{variant}.{ending}" if variant else file, hub)

    shapes: dict[str, list[int]] = {}
    read: dict[str, Tensor] = {}
    with readable(path):
        files = {"model.safetensors": find("model.safetensors")}  # first, as transformers looks for them
        if files["model.safetensors"] is None:
            index = find("model.safetensors.index.json")
            if index is None:
                return {}, {}
            with readable(index):
                names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
                files = {name: find_file(path, name, hub) for name in sorted(set(names))}
        for name, file in files.items():
            if file is None:
                raise CheckpointError(f"{path} holds no {name}, which its index of weights names; fetch it anew")
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                    shapes[key] = tensors.get_slice(key).get_shape()
                    if values_of is not None and key.startswith(values_of):
                        read[key] = tensors.get_tensor(key)
    return shapes, read


def read_config(path: str | Path, **kwargs: Any) -> tuple[PretrainedConfig, dict[str, Any]]:
    """Read the config of a model directory, a hub id or a config file.

    Args:
        **kwargs: settings of the hub, of loading and of the config, as transformers takes them.

    Returns:
        The config, and the settings that are none of its own.

    Raises:
        InputError: there is none, it cannot be read, or it asks for layers or labels without end.
    """
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    # A dtype "auto" is the loader's to read; what the caller says of attention is not what the file says.
    loading = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype", "attn_implementation") if name in kwargs}
    note = "" if Path(path).exists() else "there is no such directory, nor a model of that name: "
    with readable(str(path), note):
        raw, _ = PretrainedConfig.get_config_dict(path, **hub)
        _check_values(str(path), raw)
        _check_counts(str(path), raw, hub, kwargs.get("variant"))
        given = kwargs | {"return_unused_kwargs": True, "trust_remote_code": False}  # None asks at the terminal
        config, rest = AutoConfig.from_pretrained(path, **given)
    if (attention := config._attn_implementation) not in OWN_ATTENTION:
        logger.warning(
            "%s: its config's attn_implementation=%r is ignored, since it may be code of the hub; give it by "
            "attn_implementation= if it is yours",
            path,
            attention,
        )
        config._attn_implementation = None
    return config, rest | hub | loading


def _check_values(path: str, raw: Mapping[str, Any]) -> None:
    """Raise InputError for values that transformers takes, and that would fail when the model runs."""
    for name, value in raw.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}: its config says {name}={value}; give a finite number")
        if name in COUNTS and isinstance(value, int) and value < 1:
            raise InputError(f"{path}: its config says {name}={value}; give 1 or more")
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: its config says architectures={names!r}; give a list of class names")


def _check_counts(path: str, raw: Mapping[str, Any], hub: Mapping[str, Any], variant: str | None) -> None:
    """Raise InputError for more labels than a stored tensor has rows, or more layers than there are tensors: of these,
    transformers makes lists before it looks at any weight."""
    asked = {name: n for name in ("num_labels", *REPEATED) if isinstance(n := raw.get(name), int) and n > DEEPEST}
    if not asked:
        return
    shapes, _ = stored_tensors(path, hub, variant)
    most = {"num_labels": max((size for shape in shapes.values() for size in shape), default=0)}
    for name, number in asked.items():
        if number > most.get(name, len(shapes)):
            raise InputError(
                f"{path}: its config says {name}={number:,}, and its safetensors are {len(shapes)} tensors of at most "
                f"{most['num_labels']:,} rows; give the config of these weights"
            )


def check_size(path: str, cls: Any, config: PretrainedConfig, shapes: Mapping[str, list[int]]) -> None:
    """Raise CheckpointError where a config asks for far more values than are stored, before memory is taken for them.

    Args:
        cls: of the model; it is built without storage, which takes 25 ms for BERT-base.
        shapes: of what is stored, see `stored_shapes`.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # several values lie in one stored element
    with torch.device("meta"):
        empty = cls(copy.deepcopy(config))
    sizes = {name: tensor for name, tensor in (*empty.named_parameters(), *empty.named_buffers())}
    asked, held = sum(tensor.numel() for tensor in sizes.values()), sum(map(_values, shapes.values()))
    if asked > 2 * held + SPARE:
        name = max(sizes, key=lambda name: sizes[name].numel())
        raise CheckpointError(
            f"{path}: its config asks for {asked:,} values ({name} {list(sizes[name].shape)}), and its safetensors "
            f"hold {held:,} ({name} {shapes.get(name, 'absent')}); give the config of these weights"
        )


def few_of(names: Collection[str]) -> str:
    """Return the first of some tensors, and how many more there are."""
    few = sorted(names)[:3]
    return (", ".join(few) or "nothing") + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def _values(shape: list[int]) -> int:
    return functools.reduce(int.__mul__, shape, 1)
