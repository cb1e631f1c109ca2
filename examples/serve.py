"""An HTTP server with dynamic batching: `python examples/serve.py MODEL_DIRECTORY [--policy patience:6]`.

    pip install 'pabee-fast[serve]'
    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"texts": ["A joyless slog."]}'

Rows of all requests are collected, up to --rows of them or for --wait-ms, and one thread scores them together; while it
does, the next ones gather. On Ctrl-C or SIGTERM, requests that have come are answered first.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import pabee_fast as pf

Score = Callable[[list[Any]], Sequence[pf.RowResult]]
"""Rows in, their results out, in order."""

MOST_CHARACTERS = 100_000
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Full(Exception):
    """So many rows wait already that another request is better tried later."""


class Batcher:
    """Scores the rows of many requests together, in one thread of its own.

    Args:
        score: what it calls, never twice at once.
        rows: the most rows of a call, unless one request has more.
        wait_ms: how long the first request of a call waits for others.
        waiting: rows that may wait.
    """

    def __init__(self, score: Score, rows: int = 64, wait_ms: float = 2.0, waiting: int = 4_096) -> None:
        self.score, self.rows, self.wait, self.most_waiting = score, rows, wait_ms / 1_000, waiting
        self.waiting = self.calls = 0
        self._requests: queue.SimpleQueue[tuple[list[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="score")
        self._thread.start()

    def submit(self, rows: list[Any]) -> Future[Sequence[pf.RowResult]]:
        """The results to come; raises Full where too many rows wait, or the batcher is closed."""
        future: Future[Sequence[pf.RowResult]] = Future()
        with self._lock:
            if self._closed or self.waiting + len(rows) > self.most_waiting:
                raise Full
            self.waiting += len(rows)
            self._requests.put((rows, future))
        return future

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._lock:
            self._closed = True
            self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._requests.get()) is not None:
            requests, is_last = self._gather(first)
            rows = [row for asked, _ in requests for row in asked]
            try:
                results = self.score(rows)
            except Exception as error:
                for _, future in requests:
                    future.set_exception(error)
            else:
                start = 0
                for asked, future in requests:
                    future.set_result(results[start : start + len(asked)])
                    start += len(asked)
            with self._lock:
                self.waiting -= len(rows)
                self.calls += 1
            if is_last:
                return

    def _gather(self, first: tuple[list[Any], Future[Any]]) -> tuple[list[tuple[list[Any], Future[Any]]], bool]:
        """The requests of a call, and whether none follow."""
        requests, rows, until = [first], len(first[0]), time.monotonic() + self.wait
        while rows < self.rows:
            try:
                request = self._requests.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if request is None:
                return requests, True
            requests.append(request)
            rows += len(request[0])
        return requests, False


def make_app(score: Score, about: dict[str, Any], *, pairs: bool = False, **options: Any) -> FastAPI:
    """The server of a model.

    Args:
        score: as `Batcher` takes it.
        about: what GET /health tells.
        pairs: whether a row is a pair of texts.
        **options: those of `Batcher`.
    """
    row: Any = tuple[Text, Text] if pairs else Text
    batcher: Batcher

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(score, **options)
        yield
        await asyncio.to_thread(batcher.close)

    class Request(BaseModel):
        texts: list[row] = Field(min_length=1, max_length=1_024)

    class Result(BaseModel):
        prediction: str | float | None
        score: float | None
        exit_layer: int | None
        error: str | None

    class Response(BaseModel):
        results: list[Result]

    app = FastAPI(title="pabee_fast", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Any, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input: megabytes, or half of a surrogate pair, which no answer can hold.
        wrong = [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]
        return JSONResponse({"detail": wrong}, 422)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {**about, "waiting": batcher.waiting, "calls": batcher.calls}

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        try:
            results = await asyncio.wrap_future(batcher.submit(request.texts))
        except Full:
            raise HTTPException(503, "too many rows wait", {"Retry-After": "1"}) from None
        named = Result.model_fields
        return Response(results=[Result(**{name: getattr(one, name) for name in named}) for one in results])

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal comes."""
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=30)


def main(
    directory: str,
    policy: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: int = 64,
    wait_ms: float = 2.0,
    pairs: bool = False,
    device: str = "auto",
) -> None:
    scorer = pf.Scorer.from_pretrained(directory, policy, device=device, texts=2 if pairs else 1)
    about = {"policy": str(scorer.policy), "reason": scorer.policy_reason}
    print(f"policy {scorer.policy}: {scorer.policy_reason}", flush=True)
    app = make_app(lambda texts: list(scorer.score(texts)), about, pairs=pairs, rows=rows, wait_ms=wait_ms)
    serve(app, host, port)


if __name__ == "__main__":
    typer.run(main)
