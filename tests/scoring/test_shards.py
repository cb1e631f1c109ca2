"""Processes that tokenize: the same tokens, whoever dies; and none is left when they are closed."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import pabee_fast as pf
from pabee_fast.errors import WorkerDied
from pabee_fast.scoring import shards
from pabee_fast.scoring.shards import Shards
from pabee_fast.scoring.texts import OwnTokenizer, Texts, Tokens
from tests.conftest import tiny_stock
from tests.scoring.test_texts import tokenizer


@pytest.fixture
def two() -> Any:
    made = Shards(tokenizer("bpe", "roberta"), 2)
    yield made
    made.close()


ROWS = Texts(["abc ab", "", "1 s", "abc " * 30, "ca"], None)
PAIRS = Texts(["abc", "b", "a"], ["ab", None, "abc " * 30])


def same(found: Tokens, wanted: Tokens) -> bool:
    return all(one.tolist() == other.tolist() for one, other in zip(found, wanted, strict=True))


def test_tokens_are_those_of_the_tokenizer_itself(two: Shards) -> None:
    own = OwnTokenizer(tokenizer("bpe", "roberta"))
    for texts in (ROWS, PAIRS, ROWS.part(0, 1), PAIRS):
        found, wanted = two(texts), own(texts)
        assert same(found, wanted)
        assert [values.dtype for values in found] == [values.dtype for values in wanted]


def test_many_threads_may_ask_at_once(two: Shards) -> None:
    own = OwnTokenizer(tokenizer("bpe", "roberta"))
    with ThreadPoolExecutor(6) as threads:
        assert all(same(found, own(ROWS)) for found in threads.map(two, [ROWS] * 30))


def test_one_that_dies_is_started_again_and_asked_once_more(two: Shards) -> None:
    wanted = two(ROWS)
    for shard in two._all:
        os.kill(shard._process.pid, signal.SIGKILL)
    assert same(two(ROWS), wanted)


def test_rows_that_kill_every_process_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BEGIN", "import os; os._exit(1)  # {path}")
    made = Shards(tokenizer("bpe", "roberta"), 1)
    with pytest.raises(WorkerDied, match="a process that tokenizes died 3 times"):
        made(ROWS)
    made.close()


def test_closing_ends_the_processes_and_those_who_wait() -> None:
    made = Shards(tokenizer("bpe", "roberta"), 1)
    pid = made._all[0]._process.pid
    os.kill(pid, signal.SIGSTOP)  # so that it never answers
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(made, ROWS)
        made.close()
        with pytest.raises((InterruptedError, RuntimeError)):
            waits.result(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, pabee_fast.scoring.shards; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_scorer_with_processes_gives_the_answers_of_one_without(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nanotoken", None)
    model = tiny_stock("bert", vocab_size=len(tiny_tokenizer)).eval()
    rows = ["good film", ("bad", "film"), "", "very good", None, "bad " * 90]
    with_processes = pf.Scorer(model, tiny_tokenizer, tokenizers=2)
    try:
        assert "in 2 processes" in with_processes.encoder.served_by
        assert list(with_processes.score(rows)) == list(pf.Scorer(model, tiny_tokenizer).score(rows))
    finally:
        with_processes.close()


def test_fewer_than_no_processes_are_refused(tiny_tokenizer: Any) -> None:
    model = tiny_stock("bert", vocab_size=len(tiny_tokenizer)).eval()
    with pytest.raises(pf.InputError, match="tokenizers=-1"):
        pf.Scorer(model, tiny_tokenizer, tokenizers=-1)
