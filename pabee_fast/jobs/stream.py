"""Standard input to standard output: JSON Lines that are scored as they come, each line with its results at its end."""

import codecs
import io
import queue
import select
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import count
from typing import BinaryIO

import pyarrow as pa

from pabee_fast.errors import InputError, JobError
from pabee_fast.jobs.columns import prefixed
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.job import Columns
from pabee_fast.jobs.worker import Scored, Task
from pabee_fast.scoring.tally import Tally
from pabee_fast.tables.jsonl import not_text, parse_line
from pabee_fast.tables.read import ROW_SIZE, quoted
from pabee_fast.tables.texts import json_bodies

ROWS = 1_024
"""Most rows that are scored together; fewer where no more come within `WAIT_SECONDS`."""
WAIT_SECONDS = 0.05

_Group = tuple[list[str], Future[Scored]]


def score_stream(
    source: BinaryIO, target: BinaryIO, columns: Columns, executor: Executor, max_errors: int | None = None
) -> Tally:
    """Score JSON Lines from a stream into another, in order; memory holds a few groups of `ROWS` rows.

    A line that cannot be scored comes out with its `error`; one that is no JSON object, with its results alone. Blank
    lines are no rows. Nothing is kept to resume from.

    Args:
        max_errors: it stops when more rows than these have errors, after the group that they are in; None: never.

    Raises:
        InputError: an object has a result column's name already, or a line is 64 MiB or longer.
        JobError: more rows have errors than `max_errors`.
    """
    results = prefixed(executor.about.schema, columns.prefix)
    groups: queue.Queue[_Group | BaseException | None] = queue.Queue(executor.slots)
    stopped = threading.Event()

    def put(item: _Group | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return groups.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            row, line = 0, count(1)
            for lines in _groups(source):
                bodies, task = _task(lines, line, row, columns, frozenset(results.names))
                if bodies:
                    put((bodies, executor.submit(task)))
                    row += len(bodies)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    # A daemon: reading may wait for ever when writing has failed.
    threading.Thread(target=read, name="read", daemon=True).start()
    tally = Tally()
    try:
        while (item := groups.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            bodies, future = item
            scored = future.result()
            named = pa.RecordBatch.from_arrays(scored.results.columns, schema=results)
            rows = zip(bodies, json_bodies(named), strict=True)
            target.write("".join(f"{{{', '.join(filter(None, row))}}}\n" for row in rows).encode())
            target.flush()
            tally.merge(scored.tally)
            if max_errors is not None and tally.errors > max_errors:
                raise JobError(
                    f"stopped: {tally.errors} of {tally.rows} rows have errors, more than max_errors={max_errors}"
                )
    finally:
        stopped.set()
    return tally


def _task(
    lines: list[bytes], numbers: Iterator[int], first_row: int, columns: Columns, taken: frozenset[str]
) -> tuple[list[str], Task]:
    """Return the lines' objects without their braces, and the task that they make."""
    bodies: list[str] = []
    texts: list[list[str | None]] = [[] for _ in columns.texts]
    refused: dict[int, str] = {}
    for raw in lines:
        number = next(numbers)
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if not (raw := raw.strip()):
            continue
        line, value, error = parse_line(number, raw)
        if not taken.isdisjoint(value):
            names = quoted(sorted(taken & value.keys()))
            raise InputError(f"line {number} has a column {names} already; choose another --prefix")
        wrong = [name for name in columns.texts if not isinstance(value.get(name), str)]
        if error or wrong:
            refused[len(bodies)] = error or not_text(wrong[0], value.get(wrong[0]))
        for name, column in zip(columns.texts, texts, strict=True):
            column.append(None if error or wrong else value[name])
        bodies.append("" if line is None else line[1:-1].strip())
    return bodies, Task("-", first_row, [pa.array(column, pa.large_string()) for column in texts], refused)


def _groups(source: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the stream's lines, in groups of `ROWS` or of what has come."""
    rest, lines = b"", list[bytes]()
    while True:
        if lines and not _has_more(source):
            yield lines
            lines = []
        data = source.read1(2**20) if isinstance(source, io.BufferedReader | io.BytesIO) else source.read(2**20)
        if not data:
            break
        *more, rest = (rest + data).split(b"\n")
        if len(rest) >= ROW_SIZE:
            raise InputError(f"standard input has a line of {ROW_SIZE} bytes or longer; is it JSON Lines?")
        lines += more
        while len(lines) >= ROWS:
            yield lines[:ROWS]
            del lines[:ROWS]
    if rest:
        lines.append(rest)
    if lines:
        yield lines


def _has_more(source: BinaryIO) -> bool:
    """Return whether more comes within `WAIT_SECONDS`; a file always has, and at its end says so."""
    try:
        return bool(select.select([source], [], [], WAIT_SECONDS)[0])
    except (OSError, ValueError):  # no descriptor, or none to wait for (Windows)
        return True
