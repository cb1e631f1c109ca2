"""examples/serve.py, with real requests on a real port: answers, batches, bad input, clients at once, and its end."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pabee_fast as pf
from tests import zoo
from tests.conftest import ROOT

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

SCRIPT = ROOT / "examples" / "serve.py"
TEXTS = ["good film", "a very long and bad film", "not bad", "this film was good, very good!"] * 4


def script() -> Any:
    spec = importlib.util.spec_from_file_location("example_serve", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = script()


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    zoo.model_with_heads("bert", vocab_size=len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(model: Path) -> pf.Scorer:
    return pf.Scorer.from_pretrained(model, pf.Patience(1), device="cpu", dtype="float32")


@contextmanager
def served(score: Callable[[list[Any]], Sequence[Any]], **options: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(serve.make_app(score, {"policy": "p"}, **options), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def ask(address: str, body: Any) -> tuple[int, Any]:
    """The status and the JSON of an answer; a body that is no string is sent as JSON."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    request = urllib.request.Request(f"{address}/classify", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def told(result: pf.RowResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("prediction", "score", "exit_layer", "error")}


def test_answers_are_those_of_the_scorer(scorer: pf.Scorer) -> None:
    want = [told(result) for result in scorer.score(TEXTS)]
    with served(lambda rows: list(scorer.score(rows))) as address:
        status, answer = ask(address, {"texts": TEXTS})
        assert status == 200
        for got, expected in zip(answer["results"], want, strict=True):
            assert got == expected | {"score": pytest.approx(expected["score"], rel=1e-5)}
        with urllib.request.urlopen(f"{address}/health") as health:
            assert json.load(health) == {"policy": "p", "waiting": 0, "calls": 1}


def test_pairs_are_scored_where_pairs_are_served(scorer: pf.Scorer) -> None:
    (want,) = scorer.score([("good film", "bad")])
    with served(lambda rows: list(scorer.score(rows)), pairs=True) as address:
        status, answer = ask(address, {"texts": [["good film", "bad"]]})
        assert status == 200 and answer["results"][0]["score"] == pytest.approx(want.score)
        assert ask(address, {"texts": ["good film"]})[0] == 422


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("no json", "JSON decode error"),
        ('{"texts": ["half of an emoji \\ud83d"]}', "valid string"),
        ({}, "Field required"),
        ({"texts": []}, "at least 1 item"),
        ({"texts": "good film"}, "valid list"),
        ({"texts": ["good film", None]}, "valid string"),
        ({"texts": ["good film", 5]}, "valid string"),
        ({"texts": [["good film", "bad"]]}, "valid string"),
        ({"texts": ["a"] * 1_025}, "at most 1024 items"),
        ({"texts": ["a" * 100_001]}, "at most 100000 characters"),
    ],
)
def test_bad_input_is_refused_before_the_model_sees_it(body: Any, says: str, bare: tuple[str, list[int]]) -> None:
    address, sizes = bare
    before = len(sizes)
    status, answer = ask(address, body)
    assert status == 422 and says in answer
    assert len(sizes) == before
    assert ask(address, {"texts": ["good film"]})[0] == 200, "the server goes on"


@pytest.fixture(scope="module")
def bare() -> Iterator[tuple[str, list[int]]]:
    """A server without a model, and how many rows each of its calls had."""
    sizes: list[int] = []

    def score(rows: list[Any]) -> list[pf.RowResult]:
        sizes.append(len(rows))
        return [pf.RowResult(row, 1.0, None, 1) for row in rows]

    with served(score, rows=8, wait_ms=1.0) as address:
        yield address, sizes


def test_clients_at_once_share_calls_and_each_gets_its_own_answers() -> None:
    sizes, begun, may_go_on = [], threading.Event(), threading.Event()

    def score(rows: list[Any]) -> list[pf.RowResult]:
        sizes.append(len(rows))
        begun.set()
        assert may_go_on.wait(60)
        return [pf.RowResult(row, 1.0, None, 1) for row in rows]

    with served(score, rows=8, wait_ms=0.0) as address, ThreadPoolExecutor(21) as clients:
        first = clients.submit(ask, address, {"texts": ["first"]})
        assert begun.wait(60)
        others = [clients.submit(ask, address, {"texts": [f"{row} a", f"{row} b"]}) for row in range(20)]
        while json.load(urllib.request.urlopen(f"{address}/health"))["waiting"] < 41:
            time.sleep(0.01)
        may_go_on.set()
        assert first.result()[1]["results"][0]["prediction"] == "first"
        for row, other in enumerate(others):
            status, answer = other.result()
            assert status == 200
            assert [result["prediction"] for result in answer["results"]] == [f"{row} a", f"{row} b"]
    assert sizes == [1, 8, 8, 8, 8, 8], "while a call runs the next ones gather"


def test_more_rows_than_may_wait_are_sent_away_and_a_failure_ends_its_own_requests_alone() -> None:
    may_go_on = threading.Event()

    def score(rows: list[Any]) -> list[pf.RowResult]:
        assert may_go_on.wait(60)
        if "break" in rows:
            raise RuntimeError("out of order")
        return [pf.RowResult(row, 1.0, None, 1) for row in rows]

    with served(score, waiting=3) as address, ThreadPoolExecutor(1) as clients:
        first = clients.submit(ask, address, {"texts": ["a", "b"]})
        while json.load(urllib.request.urlopen(f"{address}/health"))["waiting"] < 2:
            time.sleep(0.01)
        status, answer = ask(address, {"texts": ["c", "d"]})
        assert status == 503 and "too many rows wait" in answer
        may_go_on.set()
        assert first.result()[0] == 200
        assert ask(address, {"texts": ["break"]})[0] == 500
        assert ask(address, {"texts": ["a"]})[0] == 200


def test_what_was_asked_before_the_end_is_answered_and_nothing_after() -> None:
    batcher = serve.Batcher(lambda rows: [len(rows)] * len(rows), rows=2, wait_ms=0.0)
    futures = [batcher.submit([row]) for row in range(9)]
    batcher.close()
    assert sum(len(future.result(0)) for future in futures) == 9
    assert batcher.waiting == 0
    with pytest.raises(serve.Full):
        batcher.submit([1])


@pytest.mark.slow
def test_the_script_says_its_policy_serves_and_ends_on_sigterm_once_requests_are_answered(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(model), "--policy", "patience:1", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    # Long enough to collect rows that the signal finds them waiting.
    words = [*command, "--wait-ms", "2000", "--device", "cpu"]
    with subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "policy patience:1: asked for\n"
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                health = json.load(urllib.request.urlopen(f"{address}/health"))
                break
            except urllib.error.URLError:
                assert time.monotonic() < until, "it does not listen"
                time.sleep(0.05)
        assert health["policy"] == "patience:1" and health["reason"] == "asked for"
        with ThreadPoolExecutor(1) as clients:
            asked = clients.submit(ask, address, {"texts": TEXTS})
            while not asked.done() and not json.load(urllib.request.urlopen(f"{address}/health"))["waiting"]:
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            status, answer = asked.result()
        assert status == 200 and len(answer["results"]) == len(TEXTS)
        _, err = server.communicate(timeout=60)
        assert server.returncode in (0, -signal.SIGTERM) and "Traceback" not in err, err
