"""DeBERTa v2 on packed rows: equal to stock transformers for every way of meeting places, of any lengths and masks."""

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests import zoo
from tests.runtime.answers import distance
from tests.tolerances import TOLERANCES, assert_close

NO_BUCKETS, FEW, MANY = -1, 8, 32
SETTINGS: dict[str, dict[str, Any]] = {
    f"{'+'.join(met) or 'neither'}, {'shared' if shared else 'own'}, {buckets} buckets": {
        "pos_att_type": met, "share_att_key": shared, "position_buckets": buckets,
    }
    for met, shared, buckets in [
        *itertools.product((["c2p", "p2c"], ["c2p"], ["p2c"]), (True, False), (FEW, MANY)),
        (["p2c", "c2p"], True, NO_BUCKETS),
        ([], True, FEW),
    ]
} | {
    "short reach": {"position_buckets": NO_BUCKETS, "max_relative_positions": 6},
    "buckets of a short reach": {"position_buckets": 4, "max_relative_positions": 12},
    "no norm of places": {"norm_rel_ebd": "none"},
    "places in the input too": {"position_biased_input": True},
    "no relative places": {"relative_attention": False, "position_biased_input": True},
    "no places at all": {"relative_attention": False},
    "another activation": {"hidden_act": "gelu_new"},
    "a convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "a convolution of a long reach, in groups": {"conv_kernel_size": 7, "conv_groups": 4, "type_vocab_size": 2},
}  # fmt: skip


@functools.cache
def pair(setting: str) -> tuple[Any, Any]:
    """A stock model, and a copy of it that runs its full depth packed."""
    stock = zoo.stock_model("deberta-v2", num_hidden_layers=3, **SETTINGS[setting])
    return stock, pf.accelerate(copy.deepcopy(stock), pf.FullDepth())


@functools.cache
def in_double(setting: str) -> Any:
    return copy.deepcopy(pair(setting)[0]).double()


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_runs_packed_and_equals_stock(setting: str) -> None:
    stock, ours = pair(setting)
    assert Engine(ours).layers.describe() == "fused (measured)"
    batch = zoo.rows("deberta-v2", [zoo.LONGEST, 1, 12, 12, 33, 5, 9])
    with torch.no_grad():
        assert_close(ours(**batch).logits, stock(**batch).logits)


@given(
    setting=st.sampled_from([*SETTINGS]), lengths=st.lists(st.integers(1, 46), min_size=1, max_size=5), data=st.data()
)
def test_rows_of_any_lengths_and_masks_are_as_exact_as_stock(
    setting: str, lengths: list[int], data: st.DataObject
) -> None:
    """With places apart from contents a model of random weights may round its logits by more than the tolerance: by
    whichever way, so that both are held against double precision."""
    stock, ours = pair(setting)
    batch = zoo.rows("deberta-v2", lengths)
    for row, length in enumerate(lengths):
        hidden = data.draw(st.sets(st.integers(0, length - 1), max_size=min(3, length - 1)))
        batch["attention_mask"][row, list(hidden)] = 0
    if data.draw(st.booleans()):
        batch = {name: values.flip(1) for name, values in batch.items()}
    with torch.no_grad():
        exact = in_double(setting)(**batch).logits
        allowed = TOLERANCES[torch.float32] + 2 * distance(stock(**batch).logits, exact)
        assert distance(ours(**batch).logits, exact) <= allowed


@pytest.mark.parametrize("layers", ["stock", "fused"])
def test_packed_and_padded_layers_give_each_row_the_answer_it_has_alone(layers: str) -> None:
    model = zoo.model_with_heads("deberta-v2")
    lengths = [3, 46, 17, 17, 1, 30]
    batch = zoo.rows("deberta-v2", lengths)
    engine = Engine(model, layers=layers, gather_cost=0.0)
    together = engine.run(pack(model, **batch), pf.Patience(1))
    for row, length in enumerate(lengths):
        alone = {name: values[row : row + 1, :length] for name, values in batch.items()}
        out = engine.run(pack(model, **alone), pf.Patience(1))
        assert out.exit_layers.item() == together.exit_layers[row]
        assert_close(out.logits[0], together.logits[row])


PARTS = {
    "embeddings of places": lambda encoder: encoder.rel_embeddings.weight,
    "their norm": lambda encoder: encoder.LayerNorm.weight,
    "a projection of theirs": lambda encoder: encoder.layer[1].attention.self.pos_key_proj.weight,
}


@pytest.mark.parametrize("part", PARTS)
def test_places_follow_weights_that_change_between_calls_without_a_trace(part: str) -> None:
    stock = zoo.stock_model("deberta-v2", share_att_key=False)
    ours, batch = pf.accelerate(copy.deepcopy(stock), pf.FullDepth()), zoo.rows("deberta-v2", [9, 4])
    before = ours(**batch).logits
    for model in (stock, ours):
        PARTS[part](model.deberta.encoder).data.mul_(-2)  # no version of the parameter counts this
    with torch.no_grad():
        expected = stock(**batch).logits
    assert (expected - before).abs().max() > 1e-3, "the test could not fail"
    assert_close(ours(**batch).logits, expected)


def test_a_projection_of_places_that_was_changed_runs_padded_and_says_so() -> None:
    stock = zoo.stock_model("deberta-v2", share_att_key=False)
    own = stock.deberta.encoder.layer[1].attention.self
    own.pos_query_proj = nn.Sequential(own.pos_query_proj, nn.Tanh())
    ours, batch = pf.accelerate(copy.deepcopy(stock), pf.FullDepth()), zoo.rows("deberta-v2", [9, 4])
    assert "stock in layer 2, since attention.self.pos_query_proj" in Engine(ours).layers.describe()
    with torch.no_grad():
        assert_close(ours(**batch).logits, stock(**batch).logits)


def test_a_convolution_that_was_changed_runs_as_it_is() -> None:
    stock, batch = zoo.stock_model("deberta-v2, convolution"), zoo.rows("deberta-v2", [9, 1, 4])
    stock.deberta.encoder.conv.register_forward_hook(lambda module, args, out: 2 * out)
    with torch.no_grad():
        expected = stock(**batch).logits
    assert_close(pf.accelerate(stock, pf.FullDepth())(**batch).logits, expected)


def test_a_table_of_places_grows_with_the_longest_row_of_a_run() -> None:
    _, ours = pair("c2p+p2c, own, 8 buckets")
    engine = Engine(ours)
    with engine.layers.turn(), engine.layers.running():
        tables = engine.layers._bound.tables  # type: ignore[union-attr]
        dense = (own := ours.deberta.encoder.layer[0].attention.self.pos_key_proj).weight, own.bias
        for side in (tables.keys, tables.queries):
            short, long, again = (side(dense, longest, 8) for longest in (3, 20, 3))
            assert [len(table) for table in (short, long, again)] == [5, 39, 5]
            assert_close(again, short)
            assert_close(long[17:22], short)
