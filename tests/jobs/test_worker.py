"""A worker: rows and waves that fail do so alone, and several tasks at once are as good as one after the other."""

import dataclasses
import gc
import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pabee_fast as pf
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.jobs.worker import Task, Worker
from pabee_fast.scoring.answers import Answers
from pabee_fast.scoring.scorer import readable
from pabee_fast.scoring.tokens import NO_TOKEN
from tests.jobs.conftest import text_of


def task(rows: int, first: int = 0, file: str = "in.csv") -> Task:
    return Task.of([text_of(first + row) for row in range(rows)], file, first)


@pytest.fixture
def worker(recipe: Recipe) -> Any:
    made, _ = recipe.worker()
    yield made
    made.stop()


def test_results_are_those_of_the_scorer(worker: Worker) -> None:
    rows: list[Any] = [text_of(row) for row in range(50)]
    (texts,), _ = readable([None, *rows])
    scored = worker.score(Task("f", 0, [texts], {0: "line 2 is broken"}))
    columns = scored.results.to_pydict()
    wanted = list(worker.scorer.score(rows))
    assert columns["error"] == ["line 2 is broken", *[None] * 50]
    assert columns["prediction"] == [None, *(row.prediction for row in wanted)]
    assert columns["exit_layer"] == [None, *(row.exit_layer for row in wanted)]
    assert columns["score"] == [None, *(pytest.approx(row.score, rel=1e-4) for row in wanted)]
    assert (scored.tally.rows, scored.tally.errors, scored.tally.failed) == (51, 1, 0)
    assert scored.tally.exits == worker.scorer.tally.exits


def test_a_text_without_any_token_has_an_error_and_stops_nothing(small_model: Path, bare_tokenizer: Any) -> None:
    scorer = pf.Scorer(pf.from_pretrained(small_model).eval(), bare_tokenizer, max_length=12)
    scored = Worker(scorer).score(Task.of([("good",), ("",), (None,)]))
    assert scored.results.column("error").to_pylist() == [None, NO_TOKEN, "the text is null, not a string"]
    assert (scored.tally.errors, scored.tally.failed) == (2, 0)


def test_tasks_at_once_give_the_same_bytes_as_one_after_the_other(worker: Worker) -> None:
    tasks = [task(40, first=40 * number) for number in range(8)]
    wanted = [worker.score(one).results for one in tasks]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda one: worker.score(one).results, tasks)) == wanted


def test_the_next_window_is_begun_before_the_answers_of_the_one_before_are_waited_for(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = dataclasses.replace(recipe, window=10).worker()
    start, begun = worker.scorer.start, [threading.Event() for _ in range(3)]
    numbers = itertools.count()

    def as_on_a_gpu(batch: Any, *options: Any) -> Any:
        number, answers = next(numbers), start(batch, *options)
        begun[number].set()

        def waiting() -> Any:
            assert begun[min(number + 1, 2)].wait(30), "the device's thread waits itself"
            return answers()

        return waiting

    wanted = worker.score(task(30)).results
    monkeypatch.setattr(worker.scorer, "start", as_on_a_gpu)
    assert worker.score(task(30)).results == wanted
    worker.stop()


def test_what_waits_for_a_windows_answers_does_not_hold_its_inputs(worker: Worker) -> None:
    batch = next(worker.scorer.plan(task(5).columns, Answers.none_yet(5, {}, worker.scorer.engine.classes))).batch
    seen = weakref.ref(batch.inputs["input_ids"])
    waiting = worker._compute(batch, None, np.zeros(0, np.int64), None)
    del batch
    gc.collect()
    assert seen() is None
    answers, tally = waiting()
    assert len(answers.exit_layers) == 5 and tally.seconds["compute"] > 0


@pytest.mark.parametrize("budget", [400, 4096])
def test_out_of_memory_splits_only_the_wave_that_met_it_and_lowers_the_budget(recipe: Recipe, budget: int) -> None:
    worker, _ = dataclasses.replace(recipe, token_budget=budget).worker()
    engine = worker.scorer.engine
    wanted = worker.score(task(100)).results
    embed, tokens, failed = engine._embed, [], []

    def short_of_memory(batch: Any, rows: np.ndarray, policy: Any) -> Any:
        tokens.append(int(batch.lengths[rows].sum()))
        if len(tokens) == 2 if budget == 400 else tokens[-1] > 700:
            failed.append(tokens[-1])
            raise torch.OutOfMemoryError("injected")
        return embed(batch, rows, policy)

    engine._embed = short_of_memory  # type: ignore[method-assign]
    got = worker.score(task(100)).results
    engine._embed = embed  # type: ignore[method-assign]
    assert failed and engine.token_budget < engine.first_budget
    total = int(worker.scorer.batch([text_of(row) for row in range(100)]).lengths.sum())
    assert sum(tokens) - sum(failed) == total, "a wave that fits is computed once"
    for name in ("prediction", "exit_layer", "error"):
        assert got.column(name).equals(wanted.column(name))
    assert got.column("score").to_pylist() == pytest.approx(wanted.column("score").to_pylist(), rel=1e-5)
    worker.stop()


def test_a_row_that_exceeds_memory_alone_gets_an_error_and_the_others_their_answers(worker: Worker) -> None:
    engine = worker.scorer.engine
    wanted = worker.score(task(40)).results
    longest = max(range(40), key=lambda row: len(text_of(row)))
    limit = int(worker.scorer.encoder([text_of(longest)]).lengths[0])
    embed = engine._embed

    def short_of_memory(batch: Any, rows: np.ndarray, policy: Any) -> Any:
        if batch.lengths[rows].max() >= limit:
            raise torch.OutOfMemoryError("injected")
        return embed(batch, rows, policy)

    engine._embed = short_of_memory  # type: ignore[method-assign]
    got = worker.score(task(40))
    errors = got.results.column("error").to_pylist()
    too_long = [row for row in range(40) if worker.scorer.encoder([text_of(row)]).lengths[0] >= limit]
    assert [row for row, error in enumerate(errors) if error] == too_long
    assert errors[longest] == f"out of memory: its {limit} tokens do not fit the device, even alone"
    assert got.tally.failed == len(too_long)
    for row in set(range(40)) - set(too_long):
        assert got.results.column("prediction")[row] == wanted.column("prediction")[row]


def test_the_audit_counts_rows_whose_full_depth_answer_is_another(recipe: Recipe) -> None:
    worker, _ = dataclasses.replace(recipe, audit=0.3).worker()
    rows = task(400, first=1000)
    scored = worker.score(rows)
    full = pf.Scorer(worker.scorer.model, worker.scorer.tokenizer, policy=pf.FullDepth())
    deep = [row.prediction for row in full.score(rows.columns[0].to_pylist())]
    from pabee_fast.calibration.audit import chosen

    audited = chosen("in.csv", 1000, 400, 0.3)
    differ = np.array(scored.results.column("prediction").to_pylist()) != np.array(deep)
    assert 80 <= audited.sum() <= 160
    assert scored.tally.audited == audited.sum()
    assert scored.tally.disagreed == (differ & audited).sum() > 0
    assert scored.tally.seconds["audit"] > 0
    plain, _ = recipe.worker()
    assert plain.score(rows).results == scored.results
    worker.stop()
    plain.stop()


def test_a_stopped_worker_gives_up_what_is_under_way(worker: Worker) -> None:
    from concurrent.futures import CancelledError

    worker.stop()
    with pytest.raises((RuntimeError, InterruptedError, CancelledError)):
        worker.score(task(10))
