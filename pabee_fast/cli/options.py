"""A command's options as typer takes them, from the dataclass that says them once."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from pabee_fast.options import PANELS, Argument, Option, Options

Given = TypeVar("Given", bound=Options)


def takes(options: type[Given]) -> Callable[[Callable[[Given], None]], Callable[..., None]]:
    """Give a command, a function of its options, the signature that typer reads: a parameter for each of their fields.

    Args:
        options: a dataclass whose every field is annotated with an Option or an Argument.
    """
    hints = get_type_hints(options, include_extras=True)
    shown = {field.name: get_args(hints[field.name]) for field in fields(options)}
    parameters = [_parameter(field, *shown[field.name]) for field in fields(options)]
    parameters.sort(key=lambda parameter: _place(shown[parameter.name][1]))

    def decorate(run: Callable[[Given], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            run(options(**given))

        command.__doc__ = run.__doc__
        command.__annotations__ = {}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(field: Field[Any], kind: Any, shown: Option | Argument) -> inspect.Parameter:
    """Return the field as a parameter that says to typer how it is given."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    told: Any
    if isinstance(shown, Argument):
        told = typer.Argument(metavar=shown.metavar, help=shown.help)
    else:
        # A flag that is off needs no --no-flag beside it; all others are named by typer.
        names = [f"--{field.name.replace('_', '-')}"] if default is False else []
        told = typer.Option(*names, help=shown.help, rich_help_panel=shown.panel)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, told],
    )


def _place(shown: Option | Argument) -> int:
    """Return where the help shows it: what is given by its place first, then panel by panel."""
    return -1 if isinstance(shown, Argument) else PANELS.index(shown.panel)
