"""The table of families: what a new one has to bring, and the variants inside one."""

import pytest
import torch

import pabee_fast as pf
from pabee_fast.modeling.loss import every_head
from pabee_fast.models import FAMILIES, family_of
from tests.conftest import padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close


def test_a_family_of_ones_own_is_one_small_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(type(FAMILIES["bert"])):  # type: ignore[misc]
        model_type = "mine"

    monkeypatch.setitem(FAMILIES, "mine", Mine())
    model = tiny_stock("bert")
    model.config.model_type = "mine"
    assert isinstance(family_of(model), Mine)
    pf.accelerate(model, pf.FullDepth())


def test_roberta_numbers_positions_after_the_padding_index_and_skips_padding() -> None:
    model = tiny_stock("roberta")
    ids = torch.tensor([[7, 1, 8, 9], [5, 6, 1, 1]])  # 1 is padding
    positions = family_of(model).position_ids(model, ids, (2, 4))
    assert positions.tolist() == [[2, 1, 3, 4], [2, 3, 1, 1]]
    assert family_of(model).max_length(model) == 48 - 2


@pytest.mark.parametrize("groups", [{"num_hidden_groups": 1}, {"num_hidden_groups": 3}, {"inner_group_num": 2}])
def test_albert_layers_are_its_groups_in_order(groups: dict[str, int]) -> None:
    stock = tiny_stock("albert", **groups)
    batch = padded_rows([4, 11, 7])
    expected = stock(**batch).logits
    assert_close(pf.accelerate(stock, pf.FullDepth())(**batch).logits, expected)

    model = tiny_model("albert", **groups)
    with torch.no_grad():
        _, heads = every_head(model, lambda **inputs: type(model).forward.__wrapped__(model, **inputs), **batch)
    for layer, logits in enumerate(heads, start=1):
        assert_close(pf.accelerate(model, pf.FixedDepth(layer))(**batch).logits, logits)
        pf.restore(model)
