"""Records of a GPU: what the steps of bench/gpu.sh measured, as one file that is never written again.

    python -m bench.record write STEPS --commit HASH    bench/results/<gpu>/<commit>.json, from a folder of steps' logs
    python -m bench.record table                        the goals, and the newest record of each GPU, in Markdown

A record holds the machine, the versions, the correctness gate, the ceilings, every step's figures and every goal beside
its figure. Without a green gate nothing is written: a speed of wrong answers is none.
"""

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.goals import GOALS, Steps
from bench.text import columns

RESULTS = Path(__file__).parent / "results"
NOT_YET = "not yet measured"


def read_steps(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the steps measured, by name, and how each ended: exit status (124: out of time) and seconds."""
    figures: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    for path in sorted(folder.glob("*.status")):
        status, seconds = map(int, path.read_text().split())
        name = path.stem
        ends[name] = {"status": status, "seconds": seconds}
        if name == "micro":
            # A run cut short has written nothing; one with a failed case holds the others.
            figures |= {name: read_micro(folder / "micro.json")} if (folder / "micro.json").exists() else {}
        elif status == 0 and (found := last_json(folder / f"{name}.log")) is not None:
            figures[name] = found
    return figures, ends


def last_json(log: Path) -> Any:
    """The JSON document on the last line of a command's output, or None."""
    lines = log.read_text().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def read_micro(path: Path) -> dict[str, Any]:
    """Every variant's figures, by operation, size and variant."""
    found: dict[str, Any] = {}
    for benchmark in json.loads(path.read_text() or '{"benchmarks": []}')["benchmarks"]:
        for name, each in benchmark["extra_info"]["variants"].items():
            found.setdefault(each["op"], {}).setdefault(each["size"], {})[name] = each
    return found


def read_gate(folder: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, from the JUnit reports; nothing passed where there is none."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for report in folder.glob("tests-*.xml"):
        for suite in ElementTree.parse(report).iter("testsuite"):
            failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            skipped = int(suite.attrib["skipped"])
            counts["failed"] += failed
            counts["skipped"] += skipped
            counts["passed"] += int(suite.attrib["tests"]) - failed - skipped
    return counts


def machine() -> dict[str, Any]:
    """What the figures were measured on, as far as it can be read."""
    import torch

    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    for name in ("torch", "triton", "transformers"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count,
                  "memory_bytes": properties.total_memory}  # fmt: skip
    asked = ["driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu"]
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        found |= dict(zip(asked, map(str.strip, answer.strip().split(",")), strict=True))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        found["nvidia-smi"] = f"not read: {error}"
    return found


def goals_of(steps: Steps) -> list[dict[str, Any]]:
    """Every goal with its figure, where the steps hold one."""
    lines: list[dict[str, Any]] = []
    for goal in GOALS:
        try:
            value = goal.read(steps)
        except KeyError:
            lines.append({"figure": goal.figure, "goal": goal.limit, "value": None, "shown": NOT_YET, "met": None})
        else:
            lines.append({"figure": goal.figure, "goal": goal.limit, "value": value, "shown": goal.show(value),
                          "met": goal.is_met(value)})  # fmt: skip
    return lines


def compose(folder: Path, commit: str, is_dirty: bool, mode: str) -> dict[str, Any]:
    """The record of a folder of steps.

    Raises:
        SystemExit: the gate is not green.
    """
    gate = read_gate(folder)
    figures, ends = read_steps(folder)
    is_green = gate["failed"] == 0 and ends.get("tests", {}).get("status") == 0
    if not is_green or (gate["passed"] == 0 and mode != "rehearsal"):
        raise SystemExit(f"no record: the correctness gate is not green ({gate}); see {folder}/tests.log")
    return {
        "commit": commit,
        "dirty": is_dirty,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "machine": machine(),
        "gate": gate,
        "ceilings": figures.get("ceilings"),
        "goals": goals_of(figures),
        "steps": {name: end | {"figures": figures.get(name)} for name, end in ends.items()},
    }


def write(record: dict[str, Any], results: Path) -> Path:
    """Writes a record under its GPU's name.

    Raises:
        SystemExit: there is one of this commit already.
    """
    gpu = record["machine"].get("gpu", "cpu")
    folder = results / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    path = folder / f"{record['commit']}{'-dirty' if record['dirty'] else ''}.json"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(json.dumps(record, indent=1) + "\n")
    except FileExistsError:
        raise SystemExit(f"{path} is there already, and records are never written again: commit, or move it") from None
    return path


def newest(results: Path) -> dict[str, dict[str, Any]]:
    """The newest record of each GPU that is of a clean tree and not a rehearsal, by the GPU's name."""
    found: dict[str, dict[str, Any]] = {}
    for path in results.glob("*/*.json"):
        record = json.loads(path.read_text())
        if record["dirty"] or record["mode"] == "rehearsal":
            continue
        gpu = record["machine"]["gpu"]
        if gpu not in found or found[gpu]["date"] < record["date"]:
            found[gpu] = record
    return dict(sorted(found.items()))


def table(results: Path = RESULTS) -> str:
    """The goals in Markdown, with a column for each GPU's newest record."""
    records = newest(results)
    heads: list[str] = [f"{gpu}, {record['commit'][:7]}" for gpu, record in records.items()] or ["measured"]
    lines = [f"| figure | goal | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    by_figure = [{line["figure"]: line for line in record["goals"]} for record in records.values()]
    for goal in GOALS:
        cells = [_cell(figures.get(goal.figure)) for figures in by_figure] or [NOT_YET]
        lines.append(f"| {goal.figure} | {goal.limit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(line: dict[str, Any] | None) -> str:
    if line is None or line["value"] is None:
        return NOT_YET
    return f"{line['shown']}{' (missed)' if line['met'] is False else ''}"


def summary(record: dict[str, Any]) -> str:
    """What bench/gpu.sh prints last."""
    is_rehearsal = record["mode"] == "rehearsal"
    words = {True: "met", False: "MISSED", None: ""} if not is_rehearsal else {}
    lines: list[list[object]] = [
        [line["figure"], line["goal"], line["shown"], words.get(line["met"], "")] for line in record["goals"]
    ]
    broken = [
        f"{name}: {'out of time' if step['status'] == 124 else 'exit status ' + str(step['status'])} "
        f"after {step['seconds']} s"
        for name, step in record["steps"].items()
        if step["status"]
    ]
    gate = ", ".join(f"{count} {word}" for word, count in record["gate"].items())
    note = ["a rehearsal at tiny sizes: nothing here is a figure of anything"] if is_rehearsal else []
    return "\n".join([columns(lines), *note, f"tests: {gate}", *broken])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    writing = commands.add_parser("write")
    writing.add_argument("steps", type=Path)
    writing.add_argument("--commit", required=True)
    writing.add_argument("--dirty", action="store_true")
    writing.add_argument("--mode", choices=("full", "quick", "rehearsal"), default="full")
    writing.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.command == "table":
        print(table())
        return 0
    record = compose(args.steps, args.commit, args.dirty, args.mode)
    path = write(record, args.output)
    print(summary(record))
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
