"""What the commands take: their options, where the help shows them, and what is refused before torch is imported."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from pabee_fast.cli import app
from pabee_fast.cli.options import takes
from pabee_fast.errors import InputError
from pabee_fast.options import PANELS, READ, RUN, Argument, Option, Options

RECORDED = Path(__file__).with_name("options.txt")
"""Every option of every command: a change of a name, a type or a default breaks somebody's script, so it is a change of
this file too."""


def described() -> Iterator[str]:
    """A line for each option: its names, type, and default."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in sorted(commands.items()):
        [callback] = [one.callback for one in app.registered_commands if one.name == name]
        assert callback is not None
        parameters = inspect.signature(callback, eval_str=True).parameters
        lines = []
        for option in command.params:
            kind = get_args(parameters[option.name].annotation)[0]
            kind = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
            names = (
                option.metavar
                if option.param_type_name == "argument"
                else "/".join(option.opts + option.secondary_opts)
            )
            value = "required" if option.required else f"= {option.default!r}"
            lines.append(f"{name} {names}: {kind.replace('pathlib.', '')} {value}")
        yield from sorted(lines)


def test_every_command_has_the_options_that_are_recorded() -> None:
    assert list(described()) == RECORDED.read_text().splitlines()


def test_the_help_shows_every_option_in_a_panel_and_the_panels_in_one_order() -> None:
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        panels = [option.rich_help_panel for option in command.params if option.param_type_name == "option"]
        assert panels == sorted(panels, key=PANELS.index)


@dataclass(frozen=True, kw_only=True)
class Cooking(Options):
    """Every kind of field."""

    dish: Annotated[str, Argument("DISH", "What is cooked.")]
    spices: Annotated[list[str], Option(READ, "May be given again.")] = field(default_factory=list)
    oven_heat: Annotated[int | None, Option(RUN, "Degrees.")] = None
    salt: Annotated[bool, Option(RUN, "On by default.")] = True
    burnt: Annotated[bool, Option(RUN, "Off by default.")] = False

    def check(self) -> None:
        super().check()
        if self.oven_heat == 0:
            raise InputError("oven_heat=0: heat it")


@pytest.fixture
def cook() -> Iterator[tuple[list[Cooking], Callable[[str], Any]]]:
    """A command of these options, and what it was given."""
    kitchen, given = typer.Typer(), list[Cooking]()

    @kitchen.command()
    @takes(Cooking)
    def cook_command(options: Cooking) -> None:
        """Cook a dish."""
        given.append(options)

    yield given, lambda words: CliRunner().invoke(kitchen, words.split())


def test_a_command_is_given_its_options_as_one_object(cook: tuple[list[Cooking], Callable[[str], Any]]) -> None:
    given, run = cook
    assert run("soup").exit_code == 0
    assert run("soup --spices pepper --spices curry --oven-heat 200 --no-salt --burnt").exit_code == 0
    assert given == [
        Cooking(dish="soup"),
        Cooking(dish="soup", spices=["pepper", "curry"], oven_heat=200, salt=False, burnt=True),
    ]
    assert "Cook a dish." in run("--help").output
    assert run("soup --no-burnt").exit_code == 2, "a flag that is off has no other name"


def test_what_its_class_refuses_a_command_refuses(cook: tuple[list[Cooking], Callable[[str], Any]]) -> None:
    given, run = cook
    assert isinstance(run("soup --oven-heat 0").exception, InputError)
    assert not given
