"""Model directories, in and out: what training and fitting start from and leave behind."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.calibration.settings import TUNING
from pabee_fast.modeling.directory import read_config
from pabee_fast.modeling.load import load_classifier
from pabee_fast.scoring.tokens import load_tokenizer


def load_config_and_tokenizer(path: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Of a model directory or hub id; raises InputError where one of them cannot be read."""
    config, _ = read_config(path)
    return config, load_tokenizer(path)


def load_model(
    path: str, dtype: torch.dtype | str = torch.float32, *, new_classifier: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Return the classifier of a directory, with its heads if it has any.

    Args:
        path: a model directory or hub id.
        dtype: in float32 unless told otherwise, whatever it was stored in: half precision would stall training; "auto"
            is what it was stored in.
        new_classifier: what its config says, where the directory is a bare encoder's and is to get one.

    Raises:
        PabeeFastError: what `models.load.load_classifier` says of a directory.
    """
    config, settings = read_config(path, **(new_classifier or {}))
    return load_classifier(path, config, new_classifier=new_classifier is not None, dtype=dtype, **settings)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, record: dict[str, str]) -> None:
    """Write model, tokenizer and other files; one of the same name is replaced whole, once the new one is complete.

    What `tune` found of an earlier model in this directory is removed.

    Args:
        record: texts by file name.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        for name, text in record.items():
            (Path(staged) / name).write_text(text, encoding="utf-8")
        written = sorted(Path(staged).iterdir())
        for old in output.glob("model*.safetensors*"):  # other shards of an earlier model would be loaded with ours
            if old.name not in {file.name for file in written}:
                old.unlink()
        for file in written:
            os.replace(file, output / file.name)
        if (output / TUNING).is_dir():
            shutil.rmtree(output / TUNING)
