"""What every family promises, on small random models: full depth is stock's, and a row leaves where it would alone."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import pabee_fast as pf
from pabee_fast.modeling.loss import every_head
from pabee_fast.models import FAMILIES
from pabee_fast.models.heads import stock_class
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests import zoo
from tests.alone import POLICIES, exit_alone
from tests.tolerances import TOLERANCES, assert_close

LENGTHS = [7, 1, 12, zoo.LONGEST, 12, 5]
TEXT = [variant for variant in zoo.VARIANTS if not zoo.is_vision(variant)]
ROWS = 20


def test_every_family_of_the_table_is_in_the_zoo() -> None:
    assert set(FAMILIES) == zoo.MODEL_TYPES


@functools.cache
def pair(variant: str) -> tuple[Any, Any]:
    """A stock model, and a copy of it that runs its full depth packed."""
    stock = zoo.stock_model(variant)
    return stock, pf.accelerate(copy.deepcopy(stock), pf.FullDepth())


def masked(batch: dict[str, Tensor], mask: str) -> dict[str, Tensor]:
    batch = {name: values.clone() for name, values in batch.items()}
    if mask == "no mask":
        del batch["attention_mask"]
    elif mask == "left padding":
        batch = {name: values.flip(1) for name, values in batch.items()}
    elif mask == "holes":
        batch["attention_mask"][3, [2, 9, 10, 11, 20]] = 0
        batch["attention_mask"][0, 3] = 0
        batch["attention_mask"][2, 1:6] = 0
    elif mask == "first token hidden":
        batch["attention_mask"][[0, 3], 0] = 0
    elif mask == "last token hidden":
        batch["attention_mask"][3, -1] = batch["attention_mask"][0, 6] = 0
    return batch


@pytest.mark.parametrize("variant", TEXT)
@pytest.mark.parametrize(
    "mask", ["right padding", "no mask", "left padding", "holes", "first token hidden", "last token hidden"]
)
def test_full_depth_equals_stock_for_mixed_lengths(variant: str, mask: str) -> None:
    stock, ours = pair(variant)
    batch = masked(zoo.rows(variant, LENGTHS), mask)
    with torch.no_grad():
        assert_close(ours(**batch).logits, stock(**batch).logits)


@pytest.mark.parametrize("variant", TEXT)
@pytest.mark.parametrize("given", ["token_type_ids", "position_ids", "inputs_embeds"])
def test_other_inputs_mean_what_they_mean_to_stock(variant: str, given: str) -> None:
    stock, ours = pair(variant)
    batch = zoo.rows(variant, [9, 9, 9])  # of one length, since stock decoders read the last of given embeddings
    if given == "token_type_ids":
        types = stock.config.to_dict().get("type_vocab_size", 2)
        batch[given] = (torch.arange(9) > 3).long().expand(3, 9) * (types > 1)
    elif given == "position_ids":
        batch[given] = torch.arange(9).flip(0)[None] + 2
    else:
        batch[given] = stock.get_input_embeddings()(batch.pop("input_ids")).detach()
    with torch.no_grad():
        assert_close(ours(**batch).logits, stock(**batch).logits)


@pytest.mark.parametrize("variant", ["vit", "deit"])
def test_full_depth_of_images_equals_stock(variant: str) -> None:
    stock, ours = pair(variant)
    batch = zoo.rows(variant, [1] * 7)
    labels = torch.arange(7) % 2
    with torch.no_grad():
        out, expected = ours(**batch, labels=labels), stock(**batch, labels=labels)
    assert_close(out.logits, expected.logits)
    assert torch.isclose(out.loss, expected.loss)


@functools.cache
def subject(variant: str) -> tuple[Any, dict[str, Tensor], Tensor]:
    """A model with heads, rows of every length from 1 token to the longest, and what each head says of each row alone
    through the stock layers, unpadded: [rows, layers, classes]."""
    model = zoo.model_with_heads(variant, seed=1)
    lengths = [1, zoo.LONGEST, *np.random.default_rng(7).integers(1, 40, ROWS - 2).tolist()]
    batch = zoo.rows(variant, lengths)
    forward, logits = functools.partial(stock_class(type(model)).forward, model), []
    for row in range(ROWS):
        alone = {name: values[row : row + 1] for name, values in batch.items()}
        if "input_ids" in alone:
            alone = {"input_ids": alone["input_ids"][:, : lengths[row]]}
        with torch.no_grad():
            logits.append(torch.cat(every_head(model, forward, **alone)[1]))
    return model, batch, torch.stack(logits)


@pytest.mark.parametrize("variant", zoo.VARIANTS)
def test_exits_equal_an_independent_batch_of_one_for_every_policy(variant: str) -> None:
    model, batch, logits = subject(variant)
    engine = Engine(model, token_budget=170, gather_cost=0.0)
    packed = pack(model, **batch)
    assert_close(engine.every_head(packed), logits.transpose(0, 1))
    several = 0
    for policy in POLICIES:
        exits, margins = zip(*(exit_alone(row, policy) for row in logits), strict=True)
        decided = torch.tensor(margins) > TOLERANCES[torch.float32]
        assert decided.sum() >= ROWS - 1, f"{policy}: the rows' answers hang on rounding; take another seed"
        layers = torch.tensor(exits)
        out = engine.run(packed, policy)
        assert out.exit_layers[decided].tolist() == layers[decided].tolist(), policy
        expected = logits[torch.arange(ROWS), layers - 1]
        assert (out.logits - expected)[decided].abs().max() / logits.abs().max() <= TOLERANCES[torch.float32], policy
        several += len(set(exits)) > 1
    assert several >= len(POLICIES) - 2, "rows left together by most policies, so that compaction was hardly tested"


@pytest.mark.parametrize("variant", zoo.VARIANTS)
def test_a_saved_directory_is_a_normal_one(variant: str, tmp_path: Path) -> None:
    model, batch, _ = subject(variant)
    with torch.no_grad():
        full = model(**batch).logits
    model.save_pretrained(tmp_path)
    early = pf.accelerate(copy.deepcopy(model), pf.Patience(1))(**batch)

    out = pf.from_pretrained(tmp_path, policy=pf.Patience(1))(**batch)
    assert_close(out.logits, early.logits)  # the file's tensors lie at other addresses, and products round by these
    assert torch.equal(out.exit_layers, early.exit_layers)
    auto = AutoModelForImageClassification if zoo.is_vision(variant) else AutoModelForSequenceClassification
    stock = auto.from_pretrained(tmp_path)
    assert type(stock) is stock_class(type(model))
    with torch.no_grad():
        assert_close(stock(**batch).logits, full)
