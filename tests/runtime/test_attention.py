"""Attention within packed rows, as layers of transformers call it and as rows leave."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.masking_utils import (
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.layout import Layout
from pabee_fast.runtime.attention import NAME, packed_attention, packed_attention_in
from pabee_fast.runtime.pack import cumulative, pack
from pabee_fast.runtime.state import Wave
from tests.conftest import tiny_stock
from tests.kernels.attention_cases import AttentionCase, softmax_maths
from tests.tolerances import assert_close


class Bidirectional(nn.Module):
    is_causal = False


class Causal(nn.Module):
    is_causal = True


def attend(case: AttentionCase, module: nn.Module, **options: Any) -> torch.Tensor:
    """What a layer gets that calls `packed_attention` as transformers' layers do."""
    tensors = (tensor.transpose(0, 1)[None] for tensor in case.tensors(torch.float32))
    where = Layout(case.cu_seqlens(), max(case.lengths), case.key_mask(), case.positions())
    out, weights = packed_attention(module, *tensors, attention_mask=None, layout=where, **options)
    assert weights is None
    return out


@pytest.mark.parametrize(
    ("module", "options", "case"),
    [
        (Bidirectional(), {"scaling": 0.3}, AttentionCase((5, 1, 7), scaling=0.3)),
        (Bidirectional(), {"sliding_window": 3}, AttentionCase((5, 1, 7), window=3)),
        (Bidirectional(), {"sliding_window": 7}, AttentionCase((5, 1, 7))),
        (Bidirectional(), {"sliding_window": 4}, AttentionCase((5, 1, 7), window=4, has_holes=True, hidden="first")),
        (Bidirectional(), {"sliding_window": 7}, AttentionCase((5, 1, 7), window=7, has_holes=True)),
        (Bidirectional(), {"is_causal": True}, AttentionCase((5, 1, 7), is_causal=True)),
        (Causal(), {"is_causal": False}, AttentionCase((5, 1, 7))),
        (Causal(), {"sliding_window": 2}, AttentionCase((5, 1, 7), is_causal=True, window=2, heads=6)),
        (Causal(), {}, AttentionCase((5, 1, 7), is_causal=True, value_dim=24, hidden="first")),
        (Causal(), {"output_attentions": False, "position_ids": torch.arange(13), "use_cache": False},
         AttentionCase((5, 1, 7), is_causal=True)),
    ],
)  # fmt: skip
def test_a_layer_is_given_what_it_asks_for(module: nn.Module, options: dict[str, Any], case: AttentionCase) -> None:
    expected = softmax_maths(case, *case.tensors(torch.float32))
    assert_close(attend(case, module, **options), expected[None])


@pytest.mark.parametrize(("module", "is_causal"), [(Causal(), True), (Bidirectional(), False)])
@pytest.mark.parametrize("number", [1, 2, 5, 40])
def test_a_window_is_what_transformers_masks_make_of_the_same_number(
    module: nn.Module, is_causal: bool, number: int
) -> None:
    length = 11
    case = AttentionCase((length,))
    # ModernBERT's mask reaches `config.sliding_window` tokens to each side, and its layers pass one more.
    mask = sdpa_mask(
        batch_size=1,
        q_length=length,
        kv_length=length,
        mask_function=sliding_window_causal_mask_function(number)
        if is_causal
        else sliding_window_bidirectional_mask_function(number - 1),
        allow_is_causal_skip=False,
    )
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in case.tensors(torch.float32))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    assert_close(attend(case, module, sliding_window=number), expected)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"head_mask": torch.ones(3), "s_aux": torch.ones(3)}, "head_mask, s_aux"),
        ({"position_bias": torch.ones(1, 3, 5, 5)}, "position_bias"),
        ({"output_attentions": True}, "output_attentions"),
        ({"dropout": 0.1}, "dropout"),
        ({"sliding_window": -1}, "sliding_window=-1"),
        ({"attention_mask": torch.ones(1, 1, 5, 5)}, "attention_mask"),
    ],
)
def test_an_argument_that_packed_attention_does_not_know_is_named(asked: dict[str, Any], says: str) -> None:
    q, layout = torch.randn(1, 3, 5, 8), Layout(torch.tensor([0, 5], dtype=torch.int32), 5)
    options = {"attention_mask": None, "layout": layout, **asked}
    with pytest.raises(pf.UnsupportedError, match=says):
        packed_attention(Bidirectional(), q, q, q, **options)


def test_a_module_that_does_not_say_whether_it_is_causal_is_refused() -> None:
    with pytest.raises(pf.UnsupportedError, match=r"Identity does not say .* set its is_causal"):
        attend(AttentionCase((3,)), nn.Identity())


def test_autocast_reaches_attention_as_it_reaches_torch_s() -> None:
    case = AttentionCase((7,))
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in case.tensors(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.scaled_dot_product_attention(q, k, v.bfloat16())
        where = Layout(case.cu_seqlens(), 7)
        got, _ = packed_attention(Bidirectional(), q, k, v.bfloat16(), None, layout=where)
    assert got.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(got, expected.transpose(1, 2))


def test_what_hides_and_places_tokens_moves_with_the_survivors() -> None:
    ends, mask = torch.tensor([0, 3, 5, 8], dtype=torch.int32), torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool()
    places = torch.tensor([0, 2, 3, 0, 4, 0, 1, 6], dtype=torch.int32)
    wave = Wave.start(torch.zeros(8, 4), Layout(ends, 3, mask, places), torch.arange(3), 1, {})
    wave.state.keep[1] = 0
    plan = reference.plan(wave.state.keep, ends, wave.state.row_ids, wave.state.streak)
    moved = wave.compact(plan, 2, 6, 3).layout
    assert moved.positions is not None and moved.positions.tolist() == [0, 2, 3, 0, 1, 6]
    assert moved.key_mask is not None and moved.key_mask.tolist() == [True, False, True, True, True, False]


def test_positions_are_kept_where_a_mask_hid_tokens_between_others() -> None:
    ids = torch.ones(2, 5, dtype=torch.long)

    def packed(*mask: list[int]) -> list[int] | None:
        batch = pack(tiny_stock("bert"), input_ids=ids, attention_mask=torch.tensor(mask))
        return None if batch.positions is None else batch.positions.tolist()

    assert packed([1, 1, 1, 1, 1], [1, 1, 0, 0, 0]) is None
    assert packed([1, 0, 1, 1, 0], [1, 1, 0, 0, 0]) == [0, 2, 3, 0, 1]
    # The first token stays though left padding hides it, and is as far from the others as it was.
    assert packed([0, 0, 0, 1, 1], [1, 1, 1, 1, 1]) == [0, 3, 4, 0, 1, 2, 3, 4]


SIZES = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 40, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("mistral", {"num_key_value_heads": 2, "sliding_window": 4}),
        ("modernbert", {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}),
    ],
)
@pytest.mark.parametrize("mask", [[1] * 9, [0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0, 1, 1, 1]], ids=str)
def test_stock_layers_on_packed_tokens_equal_the_padded_model(
    model_type: str, options: dict[str, Any], mask: list[int]
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **options)
    model = AutoModel.from_config(config).eval()
    ids = torch.randint(3, 50, (3, 9))
    attention_mask = torch.tensor([mask, [1] * 5 + [0] * 4, [1] * 9])
    expected = model(input_ids=ids, attention_mask=attention_mask, position_ids=torch.arange(9).expand(3, 9))
    batch = pack(tiny_stock("bert"), input_ids=ids, attention_mask=attention_mask)
    layout = Layout(torch.from_numpy(cumulative(batch.lengths)), 9, batch.key_mask, batch.positions)
    hidden = (model.embeddings if model_type == "modernbert" else model.embed_tokens)(batch.inputs["input_ids"][None])
    positions = batch.inputs["position_ids"][None]
    with torch.no_grad(), packed_attention_in(config):
        for layer in model.layers:
            kinds = (getattr(layer, "attention_type"),) if model_type == "modernbert" else ()  # noqa: B009
            rotary = model.rotary_emb(hidden, positions, *kinds)
            hidden = layer(hidden, position_embeddings=rotary, position_ids=positions, layout=layout)
        hidden = (model.final_norm if model_type == "modernbert" else model.norm)(hidden)
    kept = attention_mask != 0
    kept[:, 0] = True  # the hidden first token, too, attends as in the padded model
    assert_close(hidden[0], expected.last_hidden_state[kept])


def test_the_route_is_registered_for_masks_too_and_taken_back() -> None:
    config = tiny_stock("bert").config
    with pytest.raises(KeyboardInterrupt), packed_attention_in(config):
        assert config._attn_implementation == NAME
        raise KeyboardInterrupt
    assert config._attn_implementation == "sdpa"
    # A name without a mask function would get no mask at all, silently.
    assert NAME in AttentionInterface().keys() and NAME in AttentionMaskInterface().keys()  # noqa: SIM118
