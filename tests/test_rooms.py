"""The rooms of the package: every import points down, and no modules import each other in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pabee_fast

HOME = Path(pabee_fast.__file__).parent
FLOORS = (
    {"errors", "arguments", "extras", "say", "shown", "transfer"},
    {"policies", "layout", "tables", "kernels"},
    {"models", "options"},
    {"runtime"},
    {"modeling"},
    {"scoring"},
    {"calibration"},
    {"training", "report", "reranking"},
    {"jobs"},
    {"cli"},
)
"""From the bottom: a room may import from floors below its own, and from itself."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN = {
    **{room: {"torch", "transformers"} for room in ("arguments", "options", "policies", "tables")},
    "kernels": {"transformers"},
}
"""Libraries that a room must not know."""


def name_of(path: Path) -> str:
    """A module's name below `pabee_fast`, as its file lies; the package itself has an empty one."""
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {name_of(path): path.read_text() for path in [*HOME.rglob("*.py"), *(HOME / "kernels").glob("*.py")]}


def imports_of(name: str) -> set[str]:
    """Every module that a module imports, late and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            room = f"pabee_fast.{name.rpartition('.')[0]}." if node.level else ""  # the kernels' own are relative
            found |= {f"{room}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names}
    return found


def own_imports(name: str) -> set[str]:
    """The modules of ours that a module imports, by their names below `pabee_fast`."""
    inside = {found.removeprefix("pabee_fast.") for found in imports_of(name) if found.startswith("pabee_fast.")}
    modules = {found if found in SOURCES else found.rpartition(".")[0] for found in inside}
    return modules - {name, ""}


def test_every_module_lives_in_a_room() -> None:
    assert {name.partition(".")[0] for name in SOURCES} - {"", "__main__"} == set(FLOOR)


def test_every_import_points_down() -> None:
    up = [
        f"{name} imports {other}"
        for name in SOURCES
        for other in own_imports(name)
        if (room := name.partition(".")[0]) in FLOOR
        and (below := other.partition(".")[0]) != room
        and FLOOR[below] >= FLOOR[room]
        and FLOOR[room] > 0
    ]
    assert not up, "\n".join(up)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """The package itself aside, whose names are imported when they are asked for."""
    graph = {name: own_imports(name) for name in SOURCES if name}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(graph)


def test_rooms_do_not_know_the_libraries_that_are_not_theirs() -> None:
    wrong = [
        f"{name} imports {library}"
        for name in SOURCES
        for library in {found.partition(".")[0] for found in imports_of(name)}
        if library in FORBIDDEN.get(name.partition(".")[0], set())
    ]
    assert not wrong, "\n".join(wrong)


def test_only_ops_launches_kernels() -> None:
    """Others take their data types, their limits and the references alone."""
    without = {
        "kernels.checks",
        "kernels.checks_layer",
        "kernels.launch",
        "kernels.launch_attention",
        "kernels.reference",
    }  # these hold no kernel
    launchers = {name for name in SOURCES if name.startswith("kernels.")} - without
    for name in SOURCES:
        if name != "runtime.ops" and not name.startswith("kernels"):
            assert not own_imports(name) & launchers, name
