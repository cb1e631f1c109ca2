"""Tests that need a process of their own."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent


def run_apart(name: str, folder: Path, **environment: str) -> int:
    """Run a file of this directory's tests in a process of its own, fail where one fails or is skipped, and return how
    many there are.

    Args:
        name: of the file.
        folder: for the report.
        environment: variables, beside those that there are.
    """
    report = folder / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE / name), f"--junit-xml={report}"],
        cwd=HERE.parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    suite = next(ElementTree.parse(report).iter("testsuite"))
    assert suite.attrib["skipped"] == "0", done.stdout
    return int(suite.attrib["tests"])
