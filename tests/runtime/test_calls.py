"""Calls and models at the edges: unusual shapes, the second call, other precisions, what Trainer leaves behind."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

import pabee_fast as pf
from pabee_fast.kernels import reference
from pabee_fast.kernels.checks import Pooler
from pabee_fast.layout import Layout
from pabee_fast.models.heads import exit_heads_of
from pabee_fast.runtime import block, ops
from pabee_fast.runtime.bound import HeadStep
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from pabee_fast.transfer import ReadBack
from tests import zoo
from tests.conftest import SIZES, padded_rows, tiny_model, tiny_stock
from tests.tolerances import assert_close

LENGTHS = [7, 3, 12, 20, 9, 5, 11, 30]
TEXTS = [variant for variant in zoo.VARIANTS if not zoo.is_vision(variant)]


def test_rows_of_one_token_are_answered() -> None:
    for variant in TEXTS:
        model, batch = zoo.stock_model(variant, initializer_range=0.05), zoo.rows(variant, [1, 1, 1])
        with torch.no_grad():
            expected = model(**batch).logits
        assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids"])
@pytest.mark.parametrize("number", [SIZES["vocab_size"], -1])
def test_ids_beyond_an_embedding_table_are_told_with_their_range(name: str, number: int) -> None:
    model, batch = pf.accelerate(tiny_model("bert"), pf.Patience(1)), padded_rows([3, 8])
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch[name][0, 1] = number
    with pytest.raises(pf.InputError, match=rf"{name} .*{number}.*is the tokenizer another model's"):
        model(**batch)


def test_strided_inputs_are_answered() -> None:
    model, ids = tiny_stock("bert"), padded_rows([12, 12, 12])["input_ids"]
    wide = torch.randn(3, 6, 64)
    with torch.no_grad():
        thinned, embedded = model(ids[:, ::2]).logits, model(inputs_embeds=wide[..., :32]).logits
    pf.accelerate(model, pf.FullDepth())
    assert_close(model(ids[:, ::2]).logits, thinned)
    assert_close(model(inputs_embeds=wide[..., :32]).logits, embedded)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input_ids": torch.ones(5).long()}, r"input_ids is \[5\]: give \[rows, length\]"),
        ({"input_ids": torch.ones(2, 0).long()}, r"input_ids is \[2, 0\]: give .* of at least one token"),
        ({"inputs_embeds": torch.ones(2, 5)}, r"inputs_embeds is \[2, 5\]: give \[rows, length, hidden_size\]"),
        (
            {"input_ids": torch.ones(2, 5).long(), "token_type_ids": torch.ones(2, 4).long()},
            r"token_type_ids is \[2, 4\]: give \[rows, length\], here \[2, 5\]",
        ),
        (
            {"input_ids": torch.ones(2, 5).long(), "position_ids": torch.arange(5)},
            r"position_ids is \[5\]: give \[rows, length\], here \[2, 5\]",
        ),
    ],
)
def test_inputs_of_another_shape_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        pf.accelerate(tiny_stock("bert"), pf.FullDepth())(**given)


@pytest.mark.parametrize("variant", ["bert", "roberta", "distilbert", "deberta-v2, absolute", "mpnet", "gpt2"])
def test_a_row_beyond_the_table_of_positions_is_refused_by_number(variant: str) -> None:
    model = pf.accelerate(zoo.stock_model(variant), pf.FullDepth())
    most = pf.models.family_of(model).max_length(model)
    model(**zoo.rows(variant, [3, most]))
    with pytest.raises(pf.InputError, match=rf"row 1 has {most + 1} tokens and positions above .*truncation=True"):
        model(**zoo.rows(variant, [3, most + 1]))


def test_padding_beyond_the_table_of_positions_harms_nobody() -> None:
    model = pf.accelerate(tiny_stock("bert"), pf.FullDepth())
    batch = padded_rows([7, 3, 60])
    short = {name: values[:2] for name, values in batch.items()}
    assert_close(model(**short).logits, model(**{name: values[:, :7] for name, values in short.items()}).logits)


@pytest.mark.parametrize("variant", ["llama", "modernbert", "deberta-v2"])
def test_families_without_a_table_of_positions_take_longer_rows(variant: str) -> None:
    model = zoo.stock_model(variant, initializer_range=0.05)
    batch = zoo.rows(variant, [3, model.config.max_position_embeddings + 5])
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


def test_labels_that_would_change_the_kind_of_answer_are_refused_and_others_leave_exits_as_they_are() -> None:
    model, batch = pf.accelerate(tiny_model("bert"), pf.Patience(1)), padded_rows(LENGTHS)
    exits = model(**batch).exit_layers
    for labels in (torch.rand(8, 3).round(), *(torch.zeros(8, dtype=t) for t in (torch.uint8, torch.bool, torch.int))):
        with pytest.raises(pf.InputError, match=rf"labels are {labels.dtype}.*problem_type = 'multi_label.*torch.long"):
            model(**batch, labels=labels)
    assert torch.equal(model(**batch, labels=torch.zeros(8).long()).exit_layers, exits)
    assert torch.equal(model(**batch).exit_layers, exits)


def test_replicas_of_one_model_are_refused_with_the_way_out() -> None:
    model = pf.accelerate(tiny_stock("bert"), pf.FullDepth())
    replica = model._replicate_for_data_parallel()
    with pytest.raises(pf.UnsupportedError, match=r"nn.DataParallel.*CUDA_VISIBLE_DEVICES"):
        replica(**padded_rows(LENGTHS))


def trained_in_mixed_precision(model: PreTrainedModel, folder: Path) -> Trainer:
    batch = padded_rows([7, 3, 12])
    data = [{name: values[i] for name, values in batch.items()} | {"label": i % 3} for i in range(3)]
    options = {"use_cpu": True, "bf16": True, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
    trainer = Trainer(model, TrainingArguments(str(folder), **options), train_dataset=data)
    trainer.train()
    return trainer


def test_a_forward_that_trainer_left_on_the_model_is_named_with_the_way_out(tmp_path: Path) -> None:
    model = tiny_stock("bert")
    trainer = trained_in_mixed_precision(model, tmp_path)
    for verb in (pf.attach_heads, lambda m: pf.accelerate(m.eval(), pf.FullDepth())):
        with pytest.raises(pf.UnsupportedError, match=r"unwrap_model\(model, keep_fp32_wrapper=False\)"):
            verb(model)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    pf.accelerate(pf.attach_heads(model).eval(), pf.Patience(1))
    assert model(**padded_rows(LENGTHS)).exit_layers.min() >= 2


@pytest.mark.filterwarnings("ignore:patience")
def test_heads_attached_before_trainer_leave_early_after_it(tmp_path: Path) -> None:
    model = tiny_model("bert").train()
    trained_in_mixed_precision(model, tmp_path)
    assert pf.accelerate(model.eval(), pf.FixedDepth(2))(**padded_rows(LENGTHS)).exit_layers.tolist() == [2] * 8


def test_an_engine_that_is_kept_follows_weights_that_are_assigned_anew() -> None:
    model, other = tiny_model("bert"), tiny_model("bert", seed=3)
    engine, batch = Engine(model), pack(model, **padded_rows(LENGTHS))
    engine.run(batch, pf.Patience(1))
    model.load_state_dict(other.state_dict(), assign=True)
    got, expected = engine.run(batch, pf.Patience(1)), Engine(other).run(batch, pf.Patience(1))
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.exit_layers, expected.exit_layers)


@pytest.mark.parametrize(
    ("weight", "pooler", "reads_tokens"),
    [
        (torch.bfloat16, None, True),
        (torch.float32, None, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, False),
    ],
)
def test_the_step_reads_tokens_itself_where_a_head_of_their_precision_has_no_pooler(
    weight: torch.dtype, pooler: torch.dtype | None, reads_tokens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, ends = torch.randn(6, 4).bfloat16(), torch.tensor([0, 2, 6], dtype=torch.int32)
    asked: list[tuple[int, object]] = []
    real = ops._kernel

    def step(rows: ops.ExitRows, head: ops.ExitHead, rule: ops.ExitRule) -> None:
        asked.append((len(rows.features), rows.cu_seqlens))

    monkeypatch.setattr(ops, "_kernel", lambda name, tensor: step if name == "exit_step" else real(name, tensor))
    square = None if pooler is None else Pooler(torch.eye(4, dtype=pooler), None, "tanh")
    state = ops.RowState(torch.ones(2, dtype=torch.int8), *[torch.empty(0)] * 3)
    rows = ops.ExitRows(tokens, state, torch.empty(0), torch.empty(0), ends, "first")
    rule = ops.ExitRule("label", "agreement", layer=1, last=2)
    HeadStep(ops.ExitHead(torch.ones(3, 4, dtype=weight)), square)(rows, rule)
    assert asked == [(6, ends)] if reads_tokens else [(2, None)]


@pytest.mark.parametrize("head", ["pabee", "own-pooler", "linear"])
def test_heads_kept_in_single_precision_on_a_half_precision_model_answer(head: str) -> None:
    model = pf.attach_heads(tiny_stock("bert", initializer_range=0.05), head)
    batch = padded_rows(LENGTHS)
    expected = pf.accelerate(model, pf.FixedDepth(3))(**batch).logits
    model.bfloat16()
    model.exit_heads.float()
    model.classifier.float()
    assert_close(model(**batch).logits, expected, torch.bfloat16)


def test_each_model_says_once_why_its_layers_are_transformers_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pabee_fast")
    for _ in range(2):
        model = tiny_stock("bert")
        model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
        pf.accelerate(model, pf.FullDepth())
        for _ in range(2):
            model(**padded_rows(LENGTHS))
    assert [record.message for record in caplog.records if "has hooks" in record.message] == [
        "layers run as transformers' own modules: the layer has hooks"
    ] * 2


def test_a_budget_that_memory_has_lowered_is_kept_for_the_next_call() -> None:
    model, batch, failed = tiny_model("bert"), padded_rows(LENGTHS), []

    def scarce(module: nn.Module, args: Any) -> None:
        if args[0].shape[1] > 30:
            failed.append(args[0].shape[1])
            raise torch.OutOfMemoryError

    model.bert.encoder.layer[1].register_forward_pre_hook(scarce)
    pf.accelerate(model, pf.Patience(2))
    first = model(**batch)
    count = len(failed)
    assert count
    second = model(**batch)
    assert len(failed) == count
    assert torch.equal(first.logits, second.logits)
    pf.accelerate(model, pf.Patience(2))  # begins anew
    model(**batch)
    assert len(failed) == 2 * count


@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**40])
def test_a_window_beyond_every_row_hides_nothing_whatever_its_size(window: int) -> None:
    query, key, value = torch.randn(3, 9, 2, 8).unbind()
    ends, places = torch.tensor([0, 4, 9], dtype=torch.int32), torch.tensor([0, 1, 3, 4, 0, 1, 2, 3, 7]).int()
    layout = Layout(ends, 5, None, places)
    got = ops.attention(query, key, value, layout, window=window)
    assert torch.equal(got, ops.attention(query, key, value, Layout(ends, 5)))
    assert_close(got, reference.attention(query, key, value, ends))


def test_an_activation_that_layers_share_is_put_back_once() -> None:
    model, batch = zoo.stock_model("gpt2", initializer_range=0.05), zoo.rows("gpt2", LENGTHS)
    shared: Any = model.transformer.h[0].mlp.act
    for layer in model.transformer.h:
        layer.mlp.act = shared
    with torch.no_grad():
        expected = model(**batch).logits
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)
    assert "forward" not in vars(shared)


def test_query_and_key_of_one_weight_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "JOINED", frozenset({"cpu"}))
    model, batch = tiny_stock("bert"), padded_rows(LENGTHS)
    for layer in model.bert.encoder.layer:
        layer.attention.self.key.weight = layer.attention.self.query.weight
    with torch.no_grad():
        expected = model(**batch).logits
    assert "query, key and value share a weight" in Engine(model).layers.describe()
    assert_close(pf.accelerate(model, pf.FullDepth())(**batch).logits, expected)


def test_a_read_back_waits_for_the_device_of_its_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[object] = []

    class Counts:
        is_cuda, device = True, torch.device("cuda", 1)

    class Event:
        def record(self, stream: object = None) -> None:
            recorded.append(stream)

    class Host:
        def copy_(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: Host())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: ("stream of", device))
    ReadBack(Counts())  # type: ignore[arg-type]
    assert recorded == [("stream of", torch.device("cuda", 1))]


def test_padded_rows_know_on_the_host_where_their_tokens_stand() -> None:
    ends = [0, 5, 9, 15, 16]
    layout = Layout(torch.tensor(ends, dtype=torch.int32), 6)
    tokens = torch.arange(16)
    for rows in layout.padded_rows:
        padded = tokens[rows.where]
        assert torch.equal(padded.flatten()[rows.back], padded[rows.is_token])
        assert torch.equal(padded.flatten()[rows.back], tokens[rows.tokens])


def test_a_directory_saved_as_a_variant_is_loaded_as_one(tmp_path: Path) -> None:
    model, batch = tiny_model("bert"), padded_rows(LENGTHS)
    model.save_pretrained(tmp_path, variant="fp16")
    loaded = pf.from_pretrained(tmp_path, policy=pf.FixedDepth(3), variant="fp16")
    assert torch.equal(loaded(**batch).logits, pf.accelerate(model, pf.FixedDepth(3))(**batch).logits)
    with pytest.raises(pf.InputError, match="output_loading_info=True"):
        pf.from_pretrained(tmp_path, variant="fp16", output_loading_info=True)


def test_policies_take_numbers_as_sweeps_give_them() -> None:
    [patience], [threshold] = np.arange(3, 4), np.array([0.5], dtype=np.float32)
    assert pf.Patience(patience, first_layer=np.int32(2)) == pf.Patience(3, first_layer=2)
    assert str(pf.Confidence(threshold)) == "confidence:0.5"
    assert pf.Scheduled(np.array([2, 3])) == pf.Scheduled((2, 3))
    with pytest.raises(pf.InputError, match="give whole numbers, one for each row"):
        pf.Scheduled((1.9, 2.2))  # type: ignore[arg-type]
    with pytest.raises(pf.InputError, match="give whole numbers, one for each row"):
        pf.Scheduled(3)  # type: ignore[arg-type]
    with pytest.raises(pf.InputError, match="patience=True: give a whole number"):
        pf.Patience(True)


def test_heads_that_a_run_asks_are_those_of_the_model() -> None:
    model = tiny_model("bert", first_layer=3)
    assert len(exit_heads_of(model)) == 4
    assert Engine(model).first_head == 3
