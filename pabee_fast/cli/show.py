"""What the commands show on a terminal."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pabee_fast.shown import plain


class _PlainFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record))


def show_plainly() -> None:
    """Let no name steer the terminal by a warning, nor end the command by a character that the terminal lacks."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PlainFormatter())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def quieten_transformers() -> None:
    """Its reports on missing classifier weights are no news here, and bars are for terminals."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


@contextmanager
def stopped_in_words(kept: str | Callable[[], str]) -> Iterator[None]:
    """Where Ctrl-C or SIGTERM stops what is in a `with` of this, say what is kept and how to go on; exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"pabee-fast: stopped: {plain(kept if isinstance(kept, str) else kept())}", file=sys.stderr)
        raise typer.Exit(130) from None


def progress_bar(console: Console) -> Progress:
    """Return a bar with rows per second, and the time left where a task's total is known; silent off a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        RowsDone(),
        RowsPerSecond(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeLeft(),
        console=console,
        disable=not console.is_terminal,
    )


class RowsDone(ProgressColumn):
    """How many rows are done, of how many where that is known; "~" before an estimate."""

    def render(self, task: Task) -> Text:
        about = "~" if task.fields.get("estimated") else ""
        of = "" if task.total is None else f"/{about}{task.total:.0f}"
        return Text(f"{task.completed:.0f}{of} rows")


class TimeLeft(TimeRemainingColumn):
    """The time left; nothing where the number of rows is not known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else Text("left ") + super().render(task)


class RowsPerSecond(ProgressColumn):
    """The speed of a progress bar that counts rows."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} rows/s")
