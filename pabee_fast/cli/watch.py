"""How a job is watched while it runs: a bar on a terminal, or a line of JSON for every part."""

import json
import sys
import threading
import time
from typing import Any

from rich.console import Console

from pabee_fast.arguments import require_one_of
from pabee_fast.cli.show import progress_bar


class Watch:
    """Shows nothing: for output that is no terminal. The base of the others; any thread may call its methods."""

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def on_rows(self, rows: int, layers: int) -> None:
        """Rows were computed, whose exit layers sum to `layers`."""

    def on_part(self, progress: Any) -> None:
        """The job began, or one more part is durable (`pabee_fast.jobs.job.Progress`)."""

    def on_end(self, event: str, **figures: Any) -> None:
        """The job ended."""


class Bar(Watch):
    """A bar with rows per second, mean exit layer, and the time left where the number of rows is known."""

    def __init__(self, console: Console) -> None:
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("scoring", total=None, rate="")
        self._lock = threading.Lock()
        self._rows = self._scored = self._layers = 0

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def on_rows(self, rows: int, layers: int) -> None:
        with self._lock:
            self._rows += rows
            self._scored += rows
            self._layers += layers
            self._show()

    def on_part(self, progress: Any) -> None:
        with self._lock:
            exits = progress.tally.exits
            self._rows = max(self._rows, progress.tally.rows)
            if exits.total() > self._scored:
                self._scored = exits.total()
                self._layers = sum(layer * count for layer, count in exits.items())
            self._bar.update(self._task, total=progress.total, estimated=progress.total_estimated)
            self._show()

    def _show(self) -> None:
        mean = f"mean exit layer {self._layers / self._scored:.2f}" if self._scored else ""
        self._bar.update(self._task, completed=self._rows, rate=mean)


class JsonLines(Watch):
    """A line of JSON on stderr for the beginning, every durable part, and the end."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._begun = False

    def on_part(self, progress: Any) -> None:
        seconds = time.perf_counter() - self._started
        tally, new = progress.tally, progress.tally.rows - progress.resumed
        rate = new / seconds if seconds else 0.0
        left = None if progress.total is None or not rate else (progress.total - tally.rows) / rate
        self._write(
            "part" if self._begun else "begin",
            parts=progress.parts,
            rows=tally.rows,
            total=progress.total,
            total_estimated=progress.total_estimated,
            errors=tally.errors,
            mean_exit_layer=None if not tally.exits else round(tally.mean_exit_layer, 4),
            rows_per_second=round(rate, 1),
            seconds_left=None if left is None else round(left, 1),
        )
        self._begun = True

    def on_end(self, event: str, **figures: Any) -> None:
        self._write(event, **figures)

    def _write(self, event: str, **figures: Any) -> None:
        figures = {"event": event, "seconds": round(time.perf_counter() - self._started, 3), **figures}
        print(json.dumps(figures), file=sys.stderr, flush=True)


def choose_watch(log_format: str) -> Watch:
    """Return what `--log-format` names.

    Raises:
        InputError: another name than text or json.
    """
    require_one_of("log_format", log_format, ("text", "json"))
    if log_format == "json":
        return JsonLines()
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Watch()
