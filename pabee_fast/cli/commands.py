"""The commands together, each from a module of its own.

Heavy imports wait for the command that needs them, so that `--help` answers at once.
"""

from typing import Annotated

import typer

from pabee_fast.cli.fit import fit_command
from pabee_fast.cli.info import info_command
from pabee_fast.cli.report import report_command
from pabee_fast.cli.rerank import rerank_command
from pabee_fast.cli.score import score_command
from pabee_fast.cli.trace import trace_command
from pabee_fast.cli.train import train_command
from pabee_fast.cli.tune import tune_command

app = typer.Typer(
    help="Patience-based early exit that makes batches of a Hugging Face classifier faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
app.command("rerank")(rerank_command)
app.command("fit")(fit_command)
app.command("train")(train_command)
app.command("trace")(trace_command)
app.command("tune")(tune_command)
app.command("report")(report_command)
app.command("info")(info_command)
