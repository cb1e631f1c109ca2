"""A pytest plugin that keeps what each test said, a line of JSON at a time: what a run that is cut short leaves.

`pytest -p bench.kept --kept FILE`: of each test its name, "passed", "failed" or "skipped", of a failed one the end of
its report, and of a microbenchmark its variants' figures. `read` gives the lines back.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MESSAGE = 1_500
"""Characters of a failed test's report that are kept, its last ones."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kept", type=Path, help="where each test's outcome goes")


def pytest_configure(config: pytest.Config) -> None:
    # A worker of xdist reports to the process that started it, which writes.
    if config.getoption("--kept") is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Keeper(config.getoption("--kept")))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if call.when == "call" and benchmark is not None:
        item.user_properties.append(("variants", benchmark.extra_info.get("variants", {})))


class Keeper:
    """Writes the lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # What passes in set-up and clean-up is not an outcome.
        if report.when != "call" and report.passed:
            return
        line: dict[str, Any] = {"test": report.nodeid, "outcome": report.outcome, **dict(report.user_properties)}
        if report.failed:
            line["message"] = report.longreprtext[-MESSAGE:]
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines, but for one that was not finished."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return
