"""What an import brings: nothing heavy until it is asked for, and then what the name promises."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import pabee_fast as pf

BARE = """
import sys
import pabee_fast as pf
heavy = {"torch", "transformers", "numpy", "triton", "pyarrow", "typer", "safetensors"} & set(sys.modules)
assert not heavy, heavy
assert set(pf.__all__) <= set(dir(pf))
assert str(pf.Patience(3)) == "patience:3"
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_importing_the_package_imports_neither_torch_nor_transformers(run_python: Callable[[str], str]) -> None:
    run_python(BARE)


@pytest.mark.parametrize("name", pf.__all__)
def test_every_public_name_is_there_under_its_name(name: str) -> None:
    assert getattr(pf, name).__name__ == name
    assert getattr(pf, name) is getattr(pf, name)


def test_type_checkers_and_the_interpreter_are_told_the_same() -> None:
    tree = ast.parse(Path(pf.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        node.module.removeprefix("pabee_fast."): tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert typed == pf._MODULES
    assert set(pf._HOME) <= set(pf.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'pabee_fast' has no attribute 'Patiens'"):
        pf.Patiens  # noqa: B018


def test_star_import_brings_the_public_names(run_python: Callable[[str], str]) -> None:
    run_python("from pabee_fast import *\nassert Scorer and accelerate and trace and Patience")


WITHOUT = """
import sys
for name in ("pyarrow", "typer", "rich", "accelerate", "datasets", "hypothesis", "scipy"):
    sys.modules[name] = None
"""
USES = ["bench.endtoend", "pabee_fast.modeling.forward", "pabee_fast.calibration.replay", "pabee_fast.modeling.loss"]


def test_what_the_benchmarks_use_needs_torch_and_transformers_alone(run_python: Callable[[str], str]) -> None:
    run_python(
        WITHOUT + "\n".join(f"import {name}" for name in USES) + "\nimport pabee_fast as pf\npf.Scorer, pf.trace"
    )
