"""The pages: their figures are the repository's, and the links, commands and names in them exist."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import pabee_fast as pf

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md"))
OPTIONS = ROOT / "tests" / "cli" / "options.txt"
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of a page in one language; "" for those without."""
    for opening, body in re.findall(
        r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        if opening == language:
            yield body


@pytest.mark.parametrize("task", ["ag_news_subset", "sst2", "stsb", "mrpc"])
def test_the_readme_has_the_studys_figures(task: str) -> None:
    runs: list[dict[str, Any]] = [
        json.loads((ROOT / "experiments" / "glue" / "results" / f"{task}-minilm-s{seed}.json").read_text())
        for seed in range(3)
    ]
    assert {clock["hardware"] for run in runs for clock in run["wall_clock"]} == {"AMD EPYC, 1 of 2 cores"}
    clocks = [clock for run in runs for clock in run["wall_clock"]]
    chosen = [clock["policies"]["within a point"] for clock in clocks]
    found = [run["within_a_point"] for run in runs]
    metric = "accuracy" if "accuracy" in found[0]["metrics"] else runs[0]["metric"]
    full, early = (100 * fmean(line[which][metric] for line in found) for which in ("rival", "metrics"))
    promises = [run["promise"] for run in runs if run.get("promise")]
    changed = "not tried"
    if promises:
        share = sum(one["errors"] for one in promises) / sum(one["rows_left"] for one in promises)
        changed = f"{100 * share:.2f} % ({fmean(one['mean_exit_layer'] for one in promises):.2f} layers)"
    figures = [
        f"{fmean(clock['full_depth_rows_per_second'] for clock in clocks):.0f}",
        f"{fmean(one['rows_per_second'] for one in chosen):.0f} ({fmean(one['speed_up'] for one in chosen):.2f}x)",
        f"{fmean(line['mean_exit_layer'] for line in found):.2f}",
        f"{full:.1f} to {early:.1f}",
        changed,
    ]
    lines = [line for line in README.read_text().splitlines() if line.startswith(f"| {task.partition('_subset')[0]} ")]
    assert [line.strip("| ").split(" | ")[1:] for line in lines] == [figures]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_what_is_in_the_repository(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_and_options_exist(page: Path) -> None:
    exist = {tuple(line.split()[:2]) for line in OPTIONS.read_text().replace(":", "").replace("/", " ").splitlines()}
    for block in blocks(page, ""):
        for line in block.splitlines():
            if line.startswith("pabee-fast "):
                _, command, *words = line.split()
                wanted = {(command, word) for word in words if word.startswith("--")}
                assert wanted <= exist, line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_is_python_and_takes_public_names(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pf":
                assert node.attr in pf.__all__, f"pf.{node.attr}"


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(README, "python")
    exec(block.replace("my-model", str(ROOT / "examples" / "sample-model")), {})
    assert capsys.readouterr().out == "['negative', 'positive']\n"


def test_the_newest_changes_are_the_versions() -> None:
    versions = re.findall(r"^## (\d+)\.(\d+)\.(\d+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert ".".join(versions[0]) == pf.__version__
    assert all(tuple(map(int, newer)) > tuple(map(int, older)) for newer, older in pairwise(versions))
