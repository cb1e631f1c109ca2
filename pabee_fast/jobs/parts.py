"""Parts through an executor: reading, scoring and committing overlap, and as many parts are in memory as have slots.

One thread reads and submits; the executor's workers tokenize and compute; the caller's thread commits what is done, in
whatever order that is. A part keeps its slot from before it is read until it is committed, so that memory is bounded
and a slow writer slows the reader down.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pyarrow as pa

from pabee_fast.errors import WorkerDied
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.worker import Scored, Task
from pabee_fast.scoring.tally import Seconds, Tally
from pabee_fast.tables.open import Chunk
from pabee_fast.tables.source import Part, Parts

Commit = Callable[[Part, Chunk, Scored], None]

_Done = tuple[Part, Chunk, Future[Scored]]


def run_parts(parts: Parts, names: list[str], executor: Executor, results_schema: pa.Schema, commit: Commit) -> Seconds:
    """Score parts and commits each when it is scored.

    Args:
        parts: each with its rows; read in a thread of its own.
        names: of the files that the parts are of.
        executor: what scores.
        results_schema: of the columns that the executor gives.
        commit: makes a part's results durable; called in this thread.

    Returns:
        The seconds of each stage, as a tally has them.

    Raises:
        Whatever reading, scoring or committing raises; then nothing more is read or committed.
    """
    seconds = Seconds()
    slots = threading.Semaphore(executor.slots)
    done: queue.SimpleQueue[_Done | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def read() -> None:
        try:
            while True:
                slots.acquire()
                if stopped.is_set():
                    return
                started = time.perf_counter()
                item = next(parts, None)
                seconds["read"] += time.perf_counter() - started
                if item is None:
                    break
                part, chunk = item
                future = executor.submit(Task(names[part.file], part.first_row, chunk.columns, chunk.refused))
                future.add_done_callback(lambda future, part=part, chunk=chunk: done.put((part, chunk, future)))  # type: ignore[misc]
                under_way.append(part.index)
            done.put(None)
        except BaseException as error:
            done.put(error)
        finally:
            parts.close()

    under_way: list[int] = []
    reader = threading.Thread(target=read, name="read")
    reader.start()
    try:
        committed, all_read = 0, False
        while not all_read or committed < len(under_way):
            item = done.get()
            if item is None:
                all_read = True
                continue
            if isinstance(item, BaseException):
                raise item
            part, chunk, future = item
            try:
                scored = future.result()
            except WorkerDied as error:
                scored = _failed(chunk, str(error), results_schema)
            seconds.update(scored.tally.seconds)
            started = time.perf_counter()
            commit(part, chunk, scored)
            seconds["write"] += time.perf_counter() - started
            committed += 1
            slots.release()
    finally:
        stopped.set()
        slots.release()
        reader.join()
    return seconds


def _failed(chunk: Chunk, error: str, schema: pa.Schema) -> Scored:
    """Return what stands for the results of a part that cannot be scored: every row has an error."""
    errors = [known or error for known in chunk.errors]
    columns = [
        pa.array(errors) if name == "error" else pa.nulls(len(errors), schema.field(name).type) for name in schema.names
    ]
    tally = Tally(rows=len(errors), errors=len(errors), failed=len(errors) - len(chunk.refused))
    return Scored(pa.RecordBatch.from_arrays(columns, schema=schema), tally)
