"""A model that transformers loaded without its heads gets those of its directory, or an error says why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import pabee_fast as pf
from tests.conftest import padded_rows, tiny_model

LENGTHS = [5, 9, 2, 14]
POLICY = pf.Patience(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with heads."""
    tiny_model("bert", head="own-pooler", pooling="mean", first_layer=2).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stock_model_leaves_early_by_the_heads_of_its_directory(folder: Path, dtype: torch.dtype) -> None:
    batch = padded_rows(LENGTHS)
    expected = pf.from_pretrained(folder, policy=POLICY, dtype=dtype)(**batch)
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    full = stock(**batch).logits
    got = pf.accelerate(stock, POLICY)(**batch)
    assert got.exit_layers.min() < 6
    assert torch.equal(got.exit_layers, expected.exit_layers) and torch.equal(got.logits, expected.logits)
    assert torch.equal(pf.restore(stock)(**batch).logits, full)


def test_full_depth_reads_no_heads(folder: Path) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    assert set(pf.accelerate(stock, pf.FullDepth())(**padded_rows(LENGTHS)).exit_layers.tolist()) == {6}


def test_heads_that_the_directory_lacks_or_that_are_others_are_refused_and_leave_the_model_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    kind, file = type(stock), folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("exit_heads."))
    save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(pf.CheckpointError, match="not the ones its config describes"):
        pf.accelerate(stock, POLICY)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(pf.CheckpointError, match="1 are absent"):
        pf.accelerate(stock, POLICY)
    assert type(stock) is kind and not hasattr(stock, "exit_heads")
