"""The command line: reads options, calls the library, shows its errors in one line.

This module is what a process begins with: it readies signals and standard streams, and imports the commands after that.
"""

import errno
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

from pabee_fast.errors import PabeeFastError
from pabee_fast.shown import plain

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STOPPED = 130
_PIPE_CLOSED = 141  # what a shell says of a program that SIGPIPE ends


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pabee_fast.cli.commands import app

    return app


def main() -> None:
    """The console script `pabee-fast`: an error of ours, or of a file, is one line on stderr and exit status 2.

    SIGTERM, by which schedulers end jobs, is taken as Ctrl-C: a line, and exit status 130. Where what reads standard
    output ends before it, a line and 141.
    """
    _open_closed_streams()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, _stop)
    try:
        _run()
    except PabeeFastError as error:
        _end(2, " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(_STOPPED)
    except BrokenPipeError:
        _end(_PIPE_CLOSED, "standard output was closed before all was written")
    except OSError as error:
        if error.filename is not None:
            _end(2, f"{error.filename} cannot be read or written: {error.strerror}")
        elif error.errno in _FULL:
            _end(2, f"{error.strerror}: make room, and run the same command again")
        raise
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _run() -> None:
    from pabee_fast.cli import app
    from pabee_fast.cli.show import show_plainly

    show_plainly()
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich make a status of 1 of it, and no line
            raise end.__context__ from None
        raise
    finally:
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more as it ends
                raise


def _end(status: int, line: str) -> None:
    with suppress(OSError):
        print(f"pabee-fast: {plain(line)}", file=sys.stderr)
    sys.exit(status)


def _open_closed_streams() -> None:
    """Without this, a file that is opened later has the number of a closed stream, and what is printed goes there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # has the lowest number that is free: this one
    if sys.stderr is None:  # or `print(file=sys.stderr)` writes to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process


def _stop(number: int, frame: FrameType | None) -> None:
    """End what runs as Ctrl-C does, so that it tidies up; at once when asked again, or where nothing has begun."""
    with suppress(OSError):
        os.write(2, b"pabee-fast: stopping\n")
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: os._exit(_STOPPED))
    if _is_importing(frame):
        os._exit(_STOPPED)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether modules are being loaded, where an exception may be swallowed, or shown by others than us."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
