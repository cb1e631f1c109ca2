"""Small batches by recordings: the same answers as launch by launch, whatever size they are rounded up to.

Without a GPU there is nothing to record; what a recording replays is then run again, on the very same tensors.
"""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

import pabee_fast as pf
from pabee_fast.runtime import budget, graphs
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.graphs import LEAST, RECORDINGS, Asked, Graphs, Recording, Sections, Size
from pabee_fast.runtime.pack import PackedBatch, pack
from tests.alone import POLICIES
from tests.conftest import FAMILIES, padded_rows, tiny_model
from tests.tolerances import assert_close

LENGTHS = [7, 40, 1, 19, 12, 3, 30, 5]


class Again:
    """One section of a recording, which is run again where a GPU would replay it."""

    replays = 0

    def __init__(self, recording: Recording, sections: Sections, running: list[Iterator[Asked]], asked: Asked) -> None:
        self.recording, self.sections, self.running, self.asked = recording, sections, running, asked

    def replay(self) -> None:
        Again.replays += 1
        if self.asked is self.recording.sections[0][1]:
            self.running[:] = [self.sections(self.recording)]
        layer, counts = next(self.running[0])
        assert layer == self.asked.layer
        if counts is not None:
            assert self.asked.counts is not None
            with torch.inference_mode():  # a GPU would not ask in which mode they were made
                self.asked.counts.copy_(counts)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs are served as GPUs are; there is nothing to replay, so that sections are run again."""

    def record(self: Graphs, recording: Recording, sections: Sections) -> list[tuple[Any, Asked]]:
        running: list[Iterator[Asked]] = []
        kept = recording.results.logits.clone(), recording.results.exit_layers.clone()
        every = [*sections(recording)]  # which a GPU would record and not run
        recording.results.logits.copy_(kept[0])
        recording.results.exit_layers.copy_(kept[1])
        return [(Again(recording, sections, running, asked), asked) for asked in every]

    monkeypatch.setattr(graphs, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr("pabee_fast.runtime.engine.DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(Graphs, "_record", record)
    monkeypatch.setitem(budget.LAUNCHES, "cpu", 1e9)
    Again.replays = 0


def engine_of(model: PreTrainedModel) -> Engine:
    engine = Engine(model)
    engine.graphs = Graphs(engine.device)
    engine.layers.lets_nothing_go = True
    return engine


def packed(model: PreTrainedModel, family: str, lengths: list[int] = LENGTHS) -> PackedBatch:
    return pack(model, **padded_rows(lengths, family=family))


@given(st.lists(st.integers(1, 512), min_size=1, max_size=40))
def test_a_size_holds_its_rows_and_lays_out_all_its_tokens(lengths: list[int]) -> None:
    given_lengths = np.array(lengths)
    size = Size.of(given_lengths)
    cu_seqlens, keep = size.lay(given_lengths)
    laid = np.diff(cu_seqlens)
    assert cu_seqlens[-1] == size.tokens and laid.max() <= size.longest and laid.min() > 0
    assert laid[: len(lengths)].tolist() == lengths
    assert keep.tolist() == [1] * len(lengths) + [0] * (size.rows - len(lengths))
    assert size.tokens <= max(LEAST, 1.25 * (sum(lengths) + size.rows))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "policy", [pf.FullDepth(), pf.FixedDepth(2), pf.Scheduled([1, 3, 2, 6, 5, 1, 4, 6]), *POLICIES], ids=str
)
def test_a_small_batch_answers_as_it_does_launch_by_launch_time_after_time(
    recorded: None, family: str, policy: pf.Policy
) -> None:
    model = tiny_model(family, num_labels=2, seed=1)
    batch, engine = packed(model, family), engine_of(model)
    expected = Engine(model).run(batch, policy)
    for _ in range(4):
        told: list[tuple[int, int]] = []
        got = engine.run(batch, policy, lambda rows, layer, told=told: told.append((rows, layer)))
        assert got.exit_layers.tolist() == expected.exit_layers.tolist()
        assert_close(got.logits, expected.logits)
        assert sum(rows for rows, _ in told) == len(LENGTHS)
    assert Again.replays, "nothing was replayed"


def test_a_recording_serves_other_rows_of_its_size_and_forgets_those_before(recorded: None) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    engine, policy = engine_of(model), pf.Patience(2)
    for lengths in ([9, 9, 9], [30, 5, 7], [2, 11, 13], [40, 10, 4], [1, 1, 1], [9, 9, 9]):
        batch = packed(model, "bert", lengths)
        assert Size.of(batch.lengths) == (LEAST, 4, LEAST)
        got, expected = engine.run(batch, policy), Engine(model).run(batch, policy)
        assert got.exit_layers.tolist() == expected.exit_layers.tolist()
        assert_close(got.logits, expected.logits)
    assert Again.replays


def test_rows_that_have_all_left_end_the_run(recorded: None) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    batch, engine = packed(model, "bert"), engine_of(model)
    for exits, sections in (([6] * 8, 2), ([1] * 8, 1)):
        policy = pf.Scheduled(exits)
        for _ in range(2):
            engine.run(batch, policy)
        before = Again.replays
        assert engine.run(batch, policy).exit_layers.tolist() == exits
        assert Again.replays - before <= sections


def test_given_exits_of_one_span_share_a_recording(recorded: None) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    batch, engine = packed(model, "bert"), engine_of(model)
    for exits in ([1, 6, 2, 3, 4, 5, 6, 1], [6, 1, 1, 1, 2, 2, 3, 3], [2, 2, 2, 1, 6, 6, 6, 6]):
        assert engine.run(batch, pf.Scheduled(exits)).exit_layers.tolist() == exits
    assert Again.replays


def test_weights_that_were_exchanged_are_asked_and_not_those_recorded(recorded: None) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    batch, engine = packed(model, "bert"), engine_of(model)
    for _ in range(3):
        engine.run(batch, pf.FullDepth())
    model.load_state_dict(tiny_model("bert", num_labels=2, seed=2).state_dict(), assign=True)
    engine.graphs._memory = "of those recorded"  # type: ignore[union-attr]
    got = engine.run(batch, pf.FullDepth())
    assert engine.graphs._memory is None, "torch's goes with the last recording"  # type: ignore[union-attr]
    assert_close(got.logits, Engine(tiny_model("bert", num_labels=2, seed=2)).run(batch, pf.FullDepth()).logits)


def test_a_hook_on_a_module_is_called_every_time(recorded: None) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    calls: list[int] = []
    model.bert.embeddings.register_forward_hook(lambda *args: calls.append(1))
    batch, engine = packed(model, "bert"), engine_of(model)
    for _ in range(4):
        engine.run(batch, pf.FullDepth())
    assert len(calls) == 4 and not Again.replays


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_recordings_made_in_one_mode_serve_in_the_other(recorded: None, mode: Any) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    batch, engine = packed(model, "bert"), engine_of(model)
    expected = Engine(model).run(batch, pf.Patience(2))
    with mode():
        for _ in range(3):
            engine.run(batch, pf.Patience(2))
    assert_close(engine.run(batch, pf.Patience(2)).logits, expected.logits)


def test_what_cannot_be_recorded_is_launched_by_the_host_and_said_once(
    recorded: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graphs, "_record", fail)
    model = tiny_model("bert", num_labels=2, seed=1)
    batch, engine = packed(model, "bert"), engine_of(model)
    expected = Engine(model).run(batch, pf.Patience(2))
    for _ in range(5):
        assert_close(engine.run(batch, pf.Patience(2)).logits, expected.logits)
    assert [record.message for record in caplog.records if "not permitted" in record.message] == [
        "small batches cannot be recorded as CUDA graphs, and are launched by the host: "
        "operation not permitted when stream is capturing"
    ]


def test_a_batch_for_which_memory_does_not_suffice_is_run_in_waves(
    recorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    batch, engine = packed(model, "bert"), engine_of(model)
    expected, layer = Engine(model).run(batch, pf.Patience(2)), Engine._layer

    def short(self: Engine, number: int, wave: Any, pooling: str | None) -> torch.Tensor:
        if wave.is_never_compacted:
            raise torch.OutOfMemoryError
        return layer(self, number, wave, pooling)

    monkeypatch.setattr(Engine, "_layer", short)
    for _ in range(3):
        assert_close(engine.run(batch, pf.Patience(2)).logits, expected.logits)


def test_what_was_not_asked_for_longest_is_forgotten_and_memory_with_the_last_graph(recorded: None) -> None:
    made: list[int] = []
    kept = Graphs(torch.device("cpu"))
    kept._memory = "of the graphs of 1"

    def make(number: int) -> Any:
        made.append(number)
        return mock.Mock(sections=["a graph"] if number == 1 else [])

    for number in (*range(RECORDINGS), 0, RECORDINGS):
        kept.recording(number, lambda number=number: make(number))  # type: ignore[misc]
    assert made == [*range(RECORDINGS + 1)] and kept._memory is None
    for number in (0, 1):
        kept.recording(number, lambda number=number: make(number))  # type: ignore[misc]
    assert made[-1] == 1 and len(made) == RECORDINGS + 2


@pytest.mark.parametrize("case", ["many tokens", "hidden tokens", "own pooler module"])
def test_what_recordings_do_not_serve_runs_launch_by_launch(recorded: None, case: str) -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    if case == "own pooler module":
        model.bert.pooler.dense.register_forward_hook(lambda *args: None)
    engine = engine_of(model)
    inputs = padded_rows([40] * 200 if case == "many tokens" else [9, 12], family="bert")
    if case == "hidden tokens":
        inputs["attention_mask"][:, 0] = 0
    if case == "many tokens":
        engine.costs = type(engine.costs)(engine.costs.gather, 1_000)
    for _ in range(3):
        engine.run(pack(model, **inputs), pf.FullDepth())
    assert not Again.replays


def test_an_accelerated_model_keeps_recordings_and_an_engine_alone_does_not() -> None:
    model = tiny_model("bert", num_labels=2, seed=1)
    assert Engine(model).graphs is None
    from pabee_fast.modeling.forward import engine_of as engine_of_model

    assert engine_of_model(pf.accelerate(model, pf.Patience(2))).graphs is not None


def test_a_pooler_of_an_owner_is_called(recorded: None) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(input)

    calls: list[int] = []
    model = tiny_model("bert", num_labels=2, seed=1)
    own = model.bert.pooler.dense
    model.bert.pooler.dense = Doubled(own.in_features, own.out_features)
    engine, batch = engine_of(model), packed(model, "bert")
    for _ in range(3):
        engine.run(batch, pf.FullDepth())
    assert len(calls) == 3


class FakeGraph:
    """Notes what is asked of torch.cuda.CUDAGraph."""

    made: ClassVar[list["FakeGraph"]] = []

    def __init__(self) -> None:
        self.is_open, self.pool = False, None
        FakeGraph.made.append(self)

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.is_open, self.pool = True, pool

    def capture_end(self) -> None:
        self.is_open = False


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda as far as recording asks it."""
    stream = mock.Mock()
    FakeGraph.made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda each: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", iter(range(1, 9)).__next__)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)


def test_each_section_is_a_graph_and_all_share_memory_until_they_are_forgotten(fake_cuda: None) -> None:
    kept = Graphs(torch.device("cpu"))

    def sections(recording: Recording) -> Iterator[Asked]:
        for layer, counts in ((3, torch.ones(3)), (6, None)):
            assert [graph.is_open for graph in FakeGraph.made[-1:]] == [True]
            yield Asked(layer, counts)

    for memory in (1, 1, 2):
        found = kept._record(mock.Mock(), sections)
        assert [asked.layer for _, asked in found] == [3, 6]
        assert [graph.pool for graph, _ in found] == [memory, memory]  # type: ignore[attr-defined]
        assert not any(graph.is_open for graph in FakeGraph.made)
        if len(FakeGraph.made) == 4:
            kept.keep_for(binding=1)


def test_a_recording_that_fails_is_closed_and_garbage_is_collected_again(fake_cuda: None) -> None:
    def sections(recording: Recording) -> Iterator[Asked]:
        assert not gc.isenabled()
        raise RuntimeError("not permitted")
        yield

    with pytest.raises(RuntimeError, match="not permitted"):
        Graphs(torch.device("cpu"))._record(mock.Mock(), sections)
    assert gc.isenabled() and not FakeGraph.made[0].is_open
