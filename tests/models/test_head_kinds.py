"""Kinds of heads: what each computes, the same packed and padded; directories that hold them; layers without one."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

import pabee_fast as pf
from pabee_fast.kernels.checks import Pooler
from pabee_fast.modeling.loss import every_head
from pabee_fast.models.head import POOLINGS, through_pooler
from pabee_fast.models.head_kinds import KINDS, read_padded
from pabee_fast.models.heads import heads_of, spec_of
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from tests.conftest import FAMILIES, padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close

LENGTHS = [5, 9, 2, 14, 1, 9]
LAYERS = 6


def packed_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """[layers, rows, classes]: what the runtime's heads say."""
    engine = Engine(model, token_budget=20)
    return engine.every_head(pack(model, **batch))


def padded_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The same by the path that training takes."""
    forward = functools.partial(type(model).forward.__wrapped__, model)  # type: ignore[attr-defined]
    with torch.no_grad():
        return torch.stack(every_head(model, forward, **batch)[1])


def test_heads_never_serve_another_layer_than_their_own_when_layers_were_taken_out(tmp_path: Path) -> None:
    model = tiny_stock("bert")
    model.bert.encoder.layer = model.bert.encoder.layer[:4]
    with pytest.raises(pf.InputError, match=r"set its config.num_hidden_layers to 4, and call pf.attach_heads"):
        pf.attach_heads(model)
    model.config.num_hidden_layers = 4
    assert len(pf.attach_heads(model).exit_heads) == 3

    model = pf.accelerate(tiny_model("bert"), pf.Patience(1))
    model.bert.encoder.layer = model.bert.encoder.layer[:4]
    with pytest.raises(pf.InputError, match=r"config.num_hidden_layers=6, and the model holds 4"):
        model(**padded_rows(LENGTHS))
    model.config.num_hidden_layers = 4
    left_over = pytest.raises(pf.InputError, match=r"4 layers, and 6 heads from layer 1 on.*attach_heads")
    with left_over:
        model(**padded_rows(LENGTHS))
    with left_over:
        model.train()(**padded_rows(LENGTHS), labels=torch.zeros(len(LENGTHS)).long())
    with left_over:
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("head", KINDS)
def test_a_head_reads_what_its_kind_says(head: str, pooling: str) -> None:
    model, batch = tiny_model("bert", head=head, pooling=pooling), padded_rows(LENGTHS)
    with torch.no_grad():
        states = model.bert(**batch, output_hidden_states=True).hidden_states[1:]
    expected = []
    for layer, (linear, state) in enumerate(zip(heads_of(model), states, strict=True), start=1):
        is_last, rows = layer == LAYERS, []
        for row, length in zip(state, LENGTHS, strict=True):
            read = {"first": row[0], "last": row[length - 1], "mean": row[:length].mean(dim=0)}
            token = read["first" if is_last else pooling]
            if is_last or head == "pabee":
                token = torch.tanh(model.bert.pooler.dense(token))
            elif head == "own-pooler":
                token = torch.tanh(linear.pooler(token))
            rows.append(linear.weight @ token + linear.bias)
        expected.append(torch.stack(rows))
    assert_close(packed_logits(model, batch), torch.stack(expected))
    assert_close(padded_logits(model, batch), torch.stack(expected))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_holes_and_left_padding_read_the_same_packed_and_padded(family: str, pooling: str) -> None:
    model, batch = tiny_model(family, head="own-pooler", pooling=pooling), padded_rows([9] * 4, family=family)
    batch["attention_mask"][0, :4] = 0
    batch["attention_mask"][1, 2:5] = 0
    batch["attention_mask"][2, [0, 3, 8]] = 0
    assert_close(packed_logits(model, batch), padded_logits(model, batch))


def test_a_mean_counts_every_token_where_there_is_no_mask() -> None:
    states = torch.randn(2, 3, 4)
    assert_close(read_padded(states, None, "mean"), states.mean(dim=1))
    assert_close(read_padded(states, None, "last"), states[:, 2])
    with pytest.raises(pf.UnsupportedError, match=r"attention_mask is \[2, 3, 3\]"):
        read_padded(states, torch.ones(2, 3, 3), "mean")


def test_means_of_half_precision_are_summed_in_float32() -> None:
    states = torch.full((1, 3000, 1), 1.0, dtype=torch.bfloat16)
    assert read_padded(states, torch.ones(1, 3000), "mean").item() == 1.0


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("head", KINDS)
def test_a_directory_keeps_its_kind_and_loads_as_a_normal_one(head: str, pooling: str, tmp_path: Path) -> None:
    model = tiny_model("bert", head=head, pooling=pooling, first_layer=3)
    batch = padded_rows(LENGTHS)
    model.save_pretrained(tmp_path)
    loaded = pf.from_pretrained(tmp_path)
    assert spec_of(loaded) == spec_of(model)
    assert_close(packed_logits(loaded, batch), packed_logits(model, batch))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(stock(**batch).logits, loaded(**batch).logits)
    stored = [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("exit_heads.")]
    assert len(stored) == 3 * (4 if head == "own-pooler" else 2)


def test_other_keys_of_the_config_entry_outlive_saving(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.config.pabee_fast["guarantee"] = {"risk": 0.01}
    for folder in (tmp_path / "first", tmp_path / "second"):
        with torch.no_grad():
            heads_of(model)[0].weight.add_(1)
        model.save_pretrained(folder)
        model = pf.from_pretrained(folder)
        assert model.config.pabee_fast["guarantee"] == {"risk": 0.01}


def test_a_directory_of_the_first_format_has_the_published_heads(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pabee_fast"]["format"] = 1
    del config["pabee_fast"]["pooling"], config["pabee_fast"]["first_layer"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, batch = pf.from_pretrained(tmp_path), padded_rows(LENGTHS)
    assert spec_of(loaded) == spec_of(model)
    assert_close(packed_logits(loaded, batch), packed_logits(model, batch))


def test_own_poolers_start_as_the_models_own() -> None:
    model = tiny_model("bert", head="own-pooler")
    for head in model.exit_heads:
        assert torch.equal(head.pooler.weight, model.bert.pooler.dense.weight)
        assert head.pooler.weight.data_ptr() != model.bert.pooler.dense.weight.data_ptr()


def test_policies_begin_where_the_heads_do(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    every, late = tiny_model("bert"), tiny_model("bert", first_layer=3)
    for mine, other in zip(late.exit_heads, every.exit_heads[2:], strict=True):
        mine.load_state_dict(other.state_dict())
    texts, policies = ["good film", "a", "bad , bad film", "it was not very long !"], [
        pf.Patience(1), pf.Confidence(0.6, every=2), pf.Vote(1.4), pf.PatientDivergence(1, 0.1), pf.FullDepth(),
        pf.FixedDepth(4),
    ]  # fmt: skip
    trace = pf.trace(late, tiny_tokenizer, texts)
    assert trace.logits[:2].isnan().all()
    assert trace.logits[2:].isfinite().all()
    for policy in policies:
        scorer = pf.Scorer(late, tiny_tokenizer, policy=policy)
        assert scorer.policy == policy.from_layer(3)
        results = list(scorer.score(texts))
        assert results == list(pf.Scorer(every, tiny_tokenizer, policy=policy.from_layer(3)).score(texts))
        assert [r.exit_layer for r in results] == pf.replay(trace, policy).exit_layers.tolist()
    assert pf.accelerate(late, pf.Patience(1)).exit_policy == pf.Patience(1, first_layer=3)


def test_a_depth_before_the_first_head_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("bert", first_layer=3)
    with pytest.raises(pf.InputError, match=r"FixedDepth\(2\): the model's heads begin at layer 3"):
        pf.accelerate(model, pf.FixedDepth(2))
    made = pf.trace(model, tiny_tokenizer, ["good"])
    made.save(tmp_path / "trace.safetensors")
    for trace in (made, pf.Trace.load(tmp_path / "trace.safetensors"), made.select(torch.tensor([0]))):
        with pytest.raises(pf.InputError, match="begin at layer 3"):
            pf.replay(trace, pf.FixedDepth(2))


@pytest.mark.parametrize(("head", "pooling"), [("linear", "mean"), ("own-pooler", "first"), ("pabee", "mean")])
def test_training_weighs_the_layers_that_have_a_head(head: str, pooling: str) -> None:
    model = tiny_model("bert", head=head, pooling=pooling, first_layer=4, hidden_dropout_prob=0.0).train()
    model.config._attn_implementation = "eager"
    batch, labels = padded_rows(LENGTHS), torch.tensor([0, 1, 2, 0, 1, 2])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = model(**batch, labels=labels).loss
    loss.backward()
    losses = [torch.nn.functional.cross_entropy(logits, labels) for logits in padded_logits(model, batch)]
    assert loss.item() == pytest.approx(((4 * losses[0] + 5 * losses[1] + 6 * losses[2]) / 15).item(), rel=1e-5)
    assert all(p.grad.abs().sum() > 0 for p in model.exit_heads.parameters())


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_trained_with_the_models_own_dropout(family: str, head: str) -> None:
    options: dict[str, Any] = {"albert": {"classifier_dropout_prob": 0.5}}.get(family, {"classifier_dropout": 0.5})
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny_model(family, head=head, **options, **silent).train()
    batch = padded_rows(LENGTHS, family=family)
    one, other = padded_logits(model, batch), padded_logits(model, batch)
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    model.eval()
    assert torch.equal(padded_logits(model, batch), padded_logits(model, batch))


def test_full_depth_is_untouched_whatever_the_heads() -> None:
    stock, batch = tiny_stock("roberta"), padded_rows(LENGTHS, family="roberta")
    expected = stock(**batch).logits
    assert torch.equal(pf.attach_heads(stock, "own-pooler", pooling="mean")(**batch).logits, expected)


@pytest.mark.parametrize(
    ("activation", "expected"),
    # tanh(0.75) and tanh(-1); x (1 + erf(x / sqrt 2)) / 2 likewise; relu drops the second.
    [("tanh", (0.635149, -0.761594)), ("gelu", (0.580030, -0.158655)), ("relu", (0.75, 0.0))],
)
def test_a_pooler_is_a_dense_layer_and_an_activation(activation: str, expected: tuple[float, float]) -> None:
    pooler = Pooler(torch.tensor([[1.0, 0.0], [0.0, -2.0]]), torch.tensor([0.5, 0.0]), activation)
    assert through_pooler(pooler, torch.tensor([[0.25, 0.5]]))[0].tolist() == pytest.approx(expected, abs=1e-5)
