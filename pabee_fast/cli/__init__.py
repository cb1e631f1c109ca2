"""The command line: reads options, calls the library, shows its errors in one line. A module for each command.

Heavy imports wait for the command that needs them, so that `--help` answers at once.
"""

import errno
import signal
import sys
from typing import Annotated

import typer

from pabee_fast.cli.fit import fit_command
from pabee_fast.cli.info import info_command
from pabee_fast.cli.report import report_command
from pabee_fast.cli.score import score_command
from pabee_fast.cli.show import show_plainly
from pabee_fast.cli.train import train_command
from pabee_fast.cli.tune import tune_command
from pabee_fast.errors import PabeeFastError
from pabee_fast.shown import plain

app = typer.Typer(
    help="Patience-based early exit that makes batches of a Hugging Face classifier faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """The console script `pabee-fast`: an error of ours, or of a file, is one line on stderr and exit status 2."""
    before = signal.signal(signal.SIGTERM, _interrupt)  # by which schedulers end jobs: taken as Ctrl-C, it tidies up
    show_plainly()
    try:
        app()
    except PabeeFastError as error:
        print(f"pabee-fast: {plain(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is not None:
            print(f"pabee-fast: {plain(error.filename)} cannot be read or written: {error.strerror}", file=sys.stderr)
        elif error.errno in _FULL:
            print(f"pabee-fast: {error.strerror}: make room, and run the same command again", file=sys.stderr)
        else:
            raise
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_version(wanted: bool) -> None:
    if wanted:
        from pabee_fast import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("score")(score_command)
app.command("fit")(fit_command)
app.command("train")(train_command)
app.command("tune")(tune_command)
app.command("report")(report_command)
app.command("info")(info_command)
