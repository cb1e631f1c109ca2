"""The runtime on a GPU: the same answers as on the CPU, in float32 and bfloat16."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import pabee_fast as pf
from pabee_fast.layout import Layout
from pabee_fast.modeling.forward import engine_of
from pabee_fast.runtime import choice, ops
from pabee_fast.runtime.budget import LAUNCHES
from pabee_fast.runtime.choice import ATTENTIONS
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import pack
from pabee_fast.transfer import Stopwatch, ToHost
from tests import zoo
from tests.conftest import FAMILIES, padded_rows, tiny_model
from tests.kernels import attention_cases
from tests.runtime.answers import distance, exact_heads
from tests.tolerances import TOLERANCES, assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def every_wave_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches take no time, so that rows that have left are dropped from waves of any size."""
    monkeypatch.setitem(LAUNCHES, "cuda", 0.0)


LENGTHS = [7, 1, 12, 30, 12, 5, 40, 33, 2]
POLICIES = [
    pf.Patience(1),
    pf.Confidence(0.7),
    pf.Entropy(0.5),
    pf.PatientConfidence(2, 0.85),
    pf.PatientDivergence(1, 0.03),
    pf.Vote(1.4),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["right padding", "left padding"])
def test_full_depth_equals_stock_on_the_same_device(family: str, dtype: torch.dtype, mask: str) -> None:
    stock = tiny_model(family).to("cuda", dtype)
    batch = {name: values.cuda() for name, values in padded_rows(LENGTHS, family=family).items()}
    if mask == "left padding":
        batch = {name: values.flip(1) for name, values in batch.items()}
    with torch.no_grad():
        exact = copy.deepcopy(stock).cpu().double()(**{name: values.cpu() for name, values in batch.items()}).logits
        expected = stock(**batch).logits
    got = pf.accelerate(stock, pf.FullDepth())(**batch).logits
    # Two that round in other places may differ by more than each does from the truth.
    largest = exact.abs().max()
    ours, theirs = ((each.cpu().double() - exact).abs().max() / largest for each in (got, expected))
    assert ours <= max(TOLERANCES[dtype], 2 * theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [None, 60])
def test_scheduled_rows_leave_where_told_with_the_logits_of_that_layer(family: str, budget: int | None) -> None:
    exits = (6, 2, 4, 1, 3, 2, 5, 4, 6)
    model, batch = tiny_model(family), padded_rows(LENGTHS, family=family)
    expected = pf.accelerate(copy.deepcopy(model), pf.Scheduled(exits))(**batch)
    on_gpu = pf.accelerate(model.cuda(), pf.Scheduled(exits), token_budget=budget)
    got = on_gpu(**{name: values.cuda() for name, values in batch.items()})
    assert tuple(got.exit_layers.tolist()) == exits
    difference = (got.logits.cpu() - expected.logits).abs().max() / expected.logits.abs().max()
    assert difference <= 10 * TOLERANCES[torch.float32], "the two devices sum in another order"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_gives_the_cpus_exits(family: str, policy: pf.Policy) -> None:
    model, batch = tiny_model(family), padded_rows(LENGTHS, family=family)
    expected = pf.accelerate(copy.deepcopy(model), policy)(**batch)
    got = pf.accelerate(model.cuda(), policy)(**{name: values.cuda() for name, values in batch.items()})
    assert got.exit_layers.tolist() == expected.exit_layers.tolist()


@pytest.mark.parametrize("holes", [False, True])
def test_packing_waits_for_the_device_once(holes: bool) -> None:
    model = tiny_model("bert").to("cuda")
    padded = {name: values.cuda() for name, values in padded_rows(LENGTHS).items()}
    if holes:
        padded["attention_mask"][3, 2] = 0
    pack(model, **padded)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            pack(model, **padded)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in waits if "synchronizing" in str(warning.message)]) == 1


@pytest.mark.parametrize("under_way", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loop_waits_for_nothing_but_the_counts_it_asked_for(under_way: int, dtype: torch.dtype) -> None:
    model = tiny_model("bert").to("cuda", dtype)
    engine = Engine(model, token_budget=60, under_way=under_way)
    batch = pack(model, **padded_rows(LENGTHS))
    policy = pf.Scheduled((6, 2, 4, 1, 3, 2, 5, 4, 6))
    expected = engine.run(batch, policy)  # compiles what is to be compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = engine.run(batch, policy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tuple(got.exit_layers.tolist()) == policy.exit_layers
    assert torch.equal(got.logits, expected.logits)


def test_answers_on_their_way_are_those_of_their_run_although_the_next_one_has_begun() -> None:
    model = tiny_model("bert").to("cuda")
    engine, device = Engine(model, token_budget=60), torch.device("cuda")
    batches = [pack(model, **padded_rows(lengths)).to(device) for lengths in (LENGTHS, LENGTHS[::-1], LENGTHS[2:])]
    expected = [engine.run(batch, pf.FullDepth()) for batch in batches]
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch = Stopwatch(device)
        travelling = [
            ToHost(found.logits, found.exit_layers) for found in (engine.run(b, pf.FullDepth()) for b in batches)
        ]
        watch.stop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for sent, wanted in zip(travelling, expected, strict=True):
        logits, exit_layers = sent.tensors()
        assert torch.equal(logits, wanted.logits.cpu()) and torch.equal(exit_layers, wanted.exit_layers.cpu())
    assert 0 < watch.seconds() < 60


@pytest.mark.parametrize("budget", [None, 60])
def test_candidates_leave_as_on_the_cpu_and_comparing_them_waits_for_nothing(budget: int | None) -> None:
    model, batch = tiny_model("bert", num_labels=1, seed=1), padded_rows([*LENGTHS, *LENGTHS])
    policy = pf.Shortlist(3, (0.9, 0.6, float("inf"), 0.3, 0.1))
    lists = np.repeat([0, 1, 2], [9, 1, 8])
    packed = dataclasses.replace(pack(model, **batch), lists=lists)
    expected = Engine(copy.deepcopy(model), token_budget=budget).run(packed, policy)
    engine, there = Engine(model.cuda(), token_budget=budget), packed.to(torch.device("cuda"))
    engine.run(there, policy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = engine.run(there, policy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.exit_layers.tolist() == expected.exit_layers.tolist()
    assert len(set(got.exit_layers.tolist())) > 2


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fused_layers_are_as_near_to_double_precision_as_stock_ones(
    family: str, activation: str, dtype: torch.dtype
) -> None:
    name = "activation" if family == "distilbert" else "hidden_act"
    model, rows = zoo.model_with_heads(family, **{name: activation}).to("cuda", dtype), zoo.rows(family, LENGTHS)
    batch, exact = pack(model, **rows), exact_heads(model, rows)
    # Two that round in other places may differ by more than each does from the truth.
    allowed = max(TOLERANCES[dtype], 2 * distance(Engine(model, layers="stock").every_head(batch), exact))
    assert distance(Engine(model, layers="fused").every_head(batch), exact) <= allowed
    query = Engine(model).family.blocks(Engine(model).layers.modules[0])[0].query
    assert query.weight.untyped_storage().nbytes() == 3 * query.weight.nbytes, "weights were not joined"


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_leave_as_near_to_double_precision_by_any_attention(attention: str, dtype: torch.dtype) -> None:
    model, rows = zoo.model_with_heads("bert").to("cuda", dtype), zoo.rows("bert", LENGTHS)
    batch, exits = pack(model, **rows), (6, 2, 4, 1, 3, 2, 5, 4, 6)
    exact = exact_heads(model, rows)
    exact = exact[torch.tensor(exits) - 1, torch.arange(len(exits))]
    allowed = max(
        TOLERANCES[dtype], 2 * distance(Engine(model, layers="stock").run(batch, pf.Scheduled(exits)).logits, exact)
    )
    got = Engine(model, attention=attention).run(batch, pf.Scheduled(exits))
    assert tuple(got.exit_layers.tolist()) == exits
    assert distance(got.logits, exact) <= allowed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
def test_layers_by_every_kernel_of_ours_are_as_near_to_double_precision_as_stock_ones(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "activation" if family == "distilbert" else "hidden_act"
    model, rows = zoo.model_with_heads(family, **{name: "gelu"}).to("cuda", dtype), zoo.rows(family, LENGTHS)
    monkeypatch.setattr(choice, "_least_tokens", lambda *asked: 0)
    batch, exact = pack(model, **rows), exact_heads(model, rows)
    allowed = max(TOLERANCES[dtype], 2 * distance(Engine(model, layers="stock").every_head(batch), exact))
    assert distance(Engine(model, attention="short").every_head(batch), exact) <= allowed


def test_fused_layers_hold_less_memory_than_stock_ones() -> None:
    model = zoo.model_with_heads("bert", hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    model = model.to("cuda", torch.bfloat16)
    batch, held = pack(model, **zoo.rows("bert", [40] * 400)), {}
    for variant in ("fused", "stock"):
        engine = Engine(model, layers=variant, token_budget=16_000)
        engine.run(batch, pf.FullDepth())
        torch.cuda.reset_peak_memory_stats()
        engine.run(batch, pf.FullDepth())
        held[variant] = torch.cuda.max_memory_allocated()
    assert held["fused"] <= held["stock"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("asked", [None, *ATTENTIONS])
@pytest.mark.parametrize("case", [case for case in attention_cases.ATTENTION_CASES if case.tokens], ids=str)
def test_attention_is_its_formula_whoever_serves(
    case: attention_cases.AttentionCase, asked: str | None, dtype: torch.dtype
) -> None:
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor,
        *,
        key_mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        **options: Any,
    ) -> torch.Tensor:
        layout = Layout(cu_seqlens, max(case.lengths), key_mask, positions, asked)
        return ops.attention(query, key, value, layout, **options)

    attention_cases.check_attention(attend, case, dtype, "cuda")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replayed_calls_answer_to_the_bit_what_the_first_one_did(
    monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype
) -> None:
    monkeypatch.setitem(LAUNCHES, "cuda", 1e9)
    first: dict[str, tuple[list[int], torch.Tensor]] = {}
    for policy in POLICIES:
        model = pf.accelerate(tiny_model(family, num_labels=2, seed=1).cuda().to(dtype), policy)
        for turn in range(4):
            for lengths in (LENGTHS, [3, 9], [40] * 5):
                inputs = {name: each.cuda() for name, each in padded_rows(lengths, family=family).items()}
                with torch.no_grad():
                    got = model(**inputs)
                exits, logits = first.setdefault(f"{policy} {lengths}", (got.exit_layers.tolist(), got.logits))
                assert got.exit_layers.tolist() == exits, turn
                assert torch.equal(got.logits, logits), turn
        graphs = engine_of(model).graphs
        assert graphs is not None and all(recording.sections for recording in graphs._recordings.values())


def test_a_replayed_call_on_another_stream_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAUNCHES, "cuda", 1e9)
    model = pf.accelerate(tiny_model("bert", num_labels=2, seed=1).cuda(), pf.FullDepth())
    inputs = [{name: each.cuda() for name, each in padded_rows([9, k]).items()} for k in (9, 20)]
    with torch.no_grad():
        expected = [pf.restore(copy.deepcopy(model))(**each).logits for each in inputs]
        torch.cuda.synchronize()
        streams, found = [torch.cuda.Stream() for _ in inputs], []
        for number in range(20):
            with torch.cuda.stream(streams[number % 2]):
                found.append(model(**inputs[number % 2]).logits)
        torch.cuda.synchronize()
    for number, logits in enumerate(found):
        assert_close(logits, expected[number % 2])


def test_calls_are_replayed_again_once_weights_were_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAUNCHES, "cuda", 1e9)
    model = pf.accelerate(tiny_model("bert", num_labels=2, seed=1).cuda(), pf.FullDepth())
    inputs = {name: each.cuda() for name, each in padded_rows([9, 20]).items()}
    for seed in (2, 3):
        others = tiny_model("bert", num_labels=2, seed=seed).cuda()
        model.load_state_dict(others.state_dict(), assign=True)
        with torch.no_grad():
            for _ in range(4):
                assert_close(model(**inputs).logits, pf.restore(others)(**inputs).logits)
        graphs = engine_of(model).graphs
        assert graphs is not None and [bool(each.sections) for each in graphs._recordings.values()] == [True]
