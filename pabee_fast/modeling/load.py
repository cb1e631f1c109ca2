"""Loading a model directory, held against what its config promises and what its files hold."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _get_model_class

from pabee_fast.errors import CheckpointError, InputError, UnsupportedError
from pabee_fast.modeling.directory import HUB, check_size, few_of, find_file, read_config, readable, stored_tensors
from pabee_fast.modeling.early_exit import early_exit_class
from pabee_fast.modeling.stored_heads import check_heads_of
from pabee_fast.models.heads import CONFIG_ENTRY, HEADS
from pabee_fast.policies import Policy

logger = logging.getLogger(__name__)

CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Precisions whose values are looked at: those of quantised weights are codes."""


def from_pretrained(path_or_id: str | Path, policy: Policy | None = None, **kwargs: Any) -> PreTrainedModel:
    """Load a Hugging Face model directory with heads.

    Args:
        path_or_id: a directory or hub id, as `AutoModelForSequenceClassification.from_pretrained` takes it.
        policy: accelerates the model with it; None leaves the model at full depth, whatever `pabee-fast tune` stored
            with it (`pf.guarantee_of(model).policy`).
        **kwargs: passed on (dtype, device_map, revision, ...), settings of the config among them (problem_type, ...).
            Hub code is never run: `trust_remote_code` and hub kernels are refused.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: no heads in it, heads that its config promises are absent, they are not the config's, or they
            do not fit a number of layers or labels that was given; or what `load_classifier` says of the weights.
        InputError: no such directory, or one that cannot be read.
        UnsupportedError: transformers has no classifier for its config.
    """
    config = kwargs.pop("config", None)
    _refuse_hub_code(kwargs if config is None else {"attn_implementation": config._attn_implementation} | kwargs)
    if kwargs.pop("output_loading_info", False):
        raise InputError("output_loading_info=True: the model alone is returned; ask its stock class for that")
    if config is None:
        config, kwargs = read_config(path_or_id, **kwargs)
    if not hasattr(config, CONFIG_ENTRY):
        raise CheckpointError(
            f"{path_or_id} has no heads (no {CONFIG_ENTRY!r} in its config): fit some with `pabee-fast fit`, train "
            "some with `pabee-fast train`, or load it with transformers, pf.attach_heads(model), and train"
        )
    model = load_classifier(path_or_id, config, **kwargs)
    if policy is not None:
        from pabee_fast.modeling.early_exit import accelerate

        accelerate(model, policy)
    return model


def load_classifier(
    path_or_id: str | Path,
    config: PretrainedConfig,
    *,
    new_classifier: bool = False,
    device: torch.device | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load the classifier of texts or images that a directory holds, with its heads if its config promises some.

    Every tensor of the model must be in the directory's files, in its shape, and finite: -inf is refused too, by which
    some ban a class, since a row with such a logit would have no answer (a bias of -1e4 bans a class as well).

    Args:
        path_or_id: a directory or hub id.
        config: its config, see `read_config`.
        new_classifier: whether what stands behind the backbone may be absent, and is new then, which is told.
        device: where the model goes; None: where transformers leaves it.
        **kwargs: passed on to transformers (dtype, device_map, ...).

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: tensors that are absent, of another shape or not finite; a config that asks for far more than
            is stored; heads that are absent, not the config's, or of other layers or labels.
        InputError: files that cannot be read, an adapter beside them, or no safetensors where there are heads or
            `use_safetensors` asks for them.
        UnsupportedError: transformers has no classifier for the config.
    """
    path = str(path_or_id)
    hub: dict[str, Any] = {name: kwargs[name] for name in HUB if name in kwargs}
    _refuse_adapter(path, hub)
    tables = (AutoModelForSequenceClassification._model_mapping, AutoModelForImageClassification._model_mapping)
    cls = next((_get_model_class(config, table) for table in tables if type(config) in table), None)
    if cls is None:
        raise UnsupportedError(f"{path}: transformers has no classifier for {type(config).__name__}")
    shapes, heads = stored_tensors(path, hub, kwargs.get("variant"), values_of=f"{HEADS}.")
    if not shapes and (hasattr(config, CONFIG_ENTRY) or kwargs.get("use_safetensors")):
        raise InputError(
            f"{path} has no weights as safetensors, and none else are read here, since that can run code: load it "
            "where you trust it, and save_pretrained() it again"
        )
    if hasattr(config, CONFIG_ENTRY):
        check_heads_of(path, config, heads)
        cls = early_exit_class(cls)
    with readable(path), _without_report():
        if shapes:  # none where the weights are a .bin
            check_size(path, cls, config, shapes)
        given = kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = cls.from_pretrained(path, config=config, **given)
    _check_found(path, model, found, shapes, new_classifier)
    if device is not None:
        model.to(device)  # whose memory is read faster than the host's
    check_finite(path, model)
    return model.eval()


def _refuse_hub_code(settings: Mapping[str, Any]) -> None:
    for name in ("trust_remote_code", "allow_all_kernels", "use_kernels", "kernel_config", "attn_implementation"):
        given = settings.get(name)
        if given and (name != "attn_implementation" or "/" in str(given)):
            raise InputError(f"{name}={given!r} would run code of the hub, which pabee_fast never does; leave it out")


def _refuse_adapter(path: str, hub: Mapping[str, Any]) -> None:
    """An adapter is applied where PEFT is installed and ignored elsewhere: answers would differ from place to place."""
    with readable(path):
        adapter = find_file(path, "adapter_config.json", hub)
    if adapter is not None:
        raise InputError(
            f"{path} holds an adapter beside the model (adapter_config.json): merge it, by merge_and_unload() and "
            "save_pretrained()"
        )


@contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of the tensors that did not fit: `_check_found` says it."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def _check_found(
    path: str, model: PreTrainedModel, found: Mapping[str, Any], stored: Collection[str], new_classifier: bool
) -> None:
    """Hold what transformers found in the files against the model: what it did not find, it has drawn at random."""
    others = {name: (list(held), list(asked)) for name, held, asked in found["mismatched_keys"]}
    absent = {*found["missing_keys"], *others}
    if new_classifier:
        backbone = f"{model.base_model_prefix}."
        new = {name for name in absent if not name.startswith(backbone) or name.startswith(f"{backbone}pooler.")}
        absent -= new
        if new and not absent:
            logger.warning("%s holds no classifier: %s are new, and untrained", path, few_of(new))
    if others.keys() & absent:
        name = min(others.keys() & absent)
        raise CheckpointError(
            f"{path} has weights that are not those of its config: {name} is stored as {others[name][0]}, and the "
            f"config asks for {others[name][1]} ({len(others)} such tensor(s)); give the config of these weights"
        )
    if absent:
        first = {name.partition(".")[0] for name in stored}
        why = "save the fine-tuned model again, whole, or train one with `pabee-fast train`"
        if len(first) == 1 and first != {model.base_model_prefix}:
            why = (
                f"all stored names begin with '{first.pop()}.', as a wrapper leaves them (DataParallel, torch.compile, "
                "PEFT): save the model inside it, by save_pretrained()"
            )
        raise CheckpointError(f"{path} lacks {few_of(absent)}, and chance would stand in their place: {why}")
    if unexpected := found["unexpected_keys"]:
        logger.warning("%s holds %s, which its model does not have; left out", path, few_of(unexpected))


def check_finite(where: str, model: PreTrainedModel) -> None:
    """Raise CheckpointError where a parameter is NaN or infinite; attention hides such values from short rows.

    One pass over the parameters: 25 ms for BERT-base in float32 on one core, 0.15 s in float16.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.dtype in CHECKED}
    # A sum is not finite where a value is not, and takes a tenth of the time that looking at each does.
    sums: dict[torch.device, list[Tensor]] = {}
    for weight in weights.values():
        if not weight.is_meta:
            sums.setdefault(weight.device, []).append(weight.sum(dtype=torch.float32))
    if all(bool(torch.stack(values).isfinite().all()) for values in sums.values()):
        return
    wrong = [name for name, weight in weights.items() if not weight.is_meta and not bool(weight.isfinite().all())]
    if wrong:
        dtype = str(model.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{where}: values of {few_of(wrong)} are NaN or infinite in {dtype}; give weights that are finite, or "
            "another dtype if they are in float32"
        )
