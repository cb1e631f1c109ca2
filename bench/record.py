"""Records of a GPU: what the steps of bench/gpu.sh measured, as one file that is never written again.

    python -m bench.record machine                      what this machine is, a step's figures
    python -m bench.record write STEPS --commit HASH    bench/results/<gpu>/<commit>.json, from a folder of steps' logs
    python -m bench.record table                        the goals, and the newest record of each GPU, in Markdown

A record holds the machine, the versions, the GPU tests, the ceilings, every step's figures and every goal beside its
figure. A step that was cut short gives the figures it had, marked as partial; GPU tests that fail, or were cut short,
are in the record and stand beside its figures wherever they are shown.
"""

import argparse
import datetime
import itertools
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench import kept
from bench.goals import GOALS, Steps
from bench.text import columns

RESULTS = Path(__file__).parent / "results"
NOT_YET = "not yet measured"
OUT_OF_TIME = 124
MODES = ("full", "quick", "tune", "untuned", "rehearsal")
"""Of bench/gpu.sh; untuned: a whole run beside which `tuned.py` was empty, so that libraries served. Its rates are no
goal's."""


def read_steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Return each step's exit status (124: out of time), its seconds, its figures and whether these are not all."""
    steps: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.status"), key=lambda path: path.stat().st_mtime_ns):
        status, seconds = map(int, path.read_text().split())
        name = path.stem
        figures = last_json(folder / f"{name}.log")
        if name == "micro":
            figures = read_micro(folder / f"{name}.kept") or None
        is_partial = figures is not None and (figures.pop("partial", False) or status != 0)
        steps[name] = {"status": status, "seconds": seconds, "partial": is_partial, "figures": figures}
    return steps


def last_json(log: Path) -> dict[str, Any] | None:
    """Return the last JSON document of a command's output that is whole on its line; None without one."""
    for line in reversed(log.read_text().splitlines() if log.exists() else []):
        if line.startswith("{"):
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            return found
    return None


def read_micro(path: Path) -> dict[str, Any]:
    """Return every variant's figures, by operation, size and variant."""
    found: dict[str, Any] = {}
    for case in kept.read(path):
        for name, each in case.get("variants", {}).items():
            found.setdefault(each["op"], {}).setdefault(each["size"], {})[name] = each
    return found


def read_gate(folder: Path, steps: Steps) -> dict[str, Any]:
    """Return how many GPU tests passed, failed and were skipped, which failed, and whether all of them ran."""
    outcomes: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("tests*.kept")):
        for line in kept.read(path):
            if outcomes.get(line["test"], {}).get("outcome") != "failed":
                outcomes[line["test"]] = line
    counts = {
        word: sum(line["outcome"] == word for line in outcomes.values()) for word in ("passed", "failed", "skipped")
    }
    failures = [
        {"test": test, "message": line["message"]} for test, line in outcomes.items() if line["outcome"] == "failed"
    ]
    # pytest's own: 0, or 1 where a test failed.
    return {**counts, "failures": failures, "complete": steps.get("tests", {}).get("status") in (0, 1)}


def gate_words(gate: dict[str, Any]) -> str:
    """Return what must be said of the GPU tests beside figures; nothing where all of them ran and passed."""
    ran = gate["passed"] + gate["failed"]
    words = [f"{gate['failed']} of {ran} GPU tests fail"] if gate["failed"] else []
    if not ran:
        words.append("no GPU test ran")
    elif not gate["complete"]:
        words.append(f"only {ran} GPU tests ran")
    return ", ".join(words)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on, as far as it can be read."""
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


def goals_of(steps: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every goal with its figure, where the steps hold one."""
    figures = {name: step["figures"] for name, step in steps.items() if step["figures"] is not None}
    lines: list[dict[str, Any]] = []
    for goal in GOALS:
        line: dict[str, Any] = {"figure": goal.figure, "goal": goal.limit, "value": None, "shown": NOT_YET, "met": None}
        lines.append(line)
        try:
            value = goal.read(figures[goal.step])
        except KeyError:
            continue
        partial = " (partial)" if steps[goal.step]["partial"] else ""
        line |= {"value": value, "shown": goal.show(value) + partial, "met": goal.is_met(value)}
    return lines


def compose(folder: Path, commit: str, is_dirty: bool, mode: str) -> dict[str, Any]:
    """Return the record of a folder of steps."""
    steps = read_steps(folder)
    about = steps.pop("machine", {}).get("figures")
    found = steps.get("bert-base-sst2", {}).get("figures") or {}
    if mode == "full" and not found.get("kernels_by_measure", True):
        mode = "untuned"
    return {
        "commit": commit,
        "dirty": is_dirty,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "machine": about if about is not None else machine(),
        "gate": read_gate(folder, steps),
        "ceilings": steps.get("ceilings", {}).get("figures"),
        "goals": goals_of(steps),
        "steps": steps,
    }


def write(record: dict[str, Any], results: Path) -> Path:
    """Write a record under its GPU's name; another one of the same commit gets a number."""
    gpu = record["machine"].get("gpu", "cpu")
    folder = results / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    for path in _names(folder, f"{record['commit']}{'-dirty' if record['dirty'] else ''}"):
        try:
            with path.open("x") as file:
                file.write(json.dumps(record, indent=1) + "\n")
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _names(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.json"
    yield from (folder / f"{stem}-{number}.json" for number in itertools.count(2))


def by_date(
    results: Path, *, modes: Sequence[str] = MODES[:-1], step: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return each GPU's records of a clean tree and of one of these modes, the newest first, by the GPU's name.

    Args:
        results: the folder of records.
        modes: of bench/gpu.sh.
        step: one whose figures a record must hold; None: any.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in results.glob("*/*.json"):
        record = json.loads(path.read_text())
        if record["dirty"] or record["mode"] not in modes:
            continue
        if step is not None and record["steps"].get(step, {}).get("figures") is None:
            continue
        found.setdefault(record["machine"].get("gpu", "cpu"), []).append(record)
    newest_first = {gpu: sorted(records, key=itemgetter("date"), reverse=True) for gpu, records in found.items()}
    return dict(sorted(newest_first.items()))


def table(results: Path = RESULTS) -> str:
    """Return the goals in Markdown, with a column for each GPU's newest record of a whole run; what that lacks is of
    the newest that has it, and says so. A newer one whose kernels were not those that were measured has a column of its
    own, which says that."""
    heads: list[str] = []
    shown: list[Sequence[dict[str, Any]]] = []
    for gpu, records in by_date(results, modes=("full", "untuned")).items():
        whole = [record for record in records if record["mode"] == "full"]
        for column, note in (
            (whole, ""),
            ([] if records[0] in whole else records[:1], ", libraries' attention and GELU"),
        ):
            if column:
                words = gate_words(column[0]["gate"])
                heads.append(f"{gpu}, {column[0]['commit'][:7]}{note}{f' ({words})' if words else ''}")
                shown.append(column)
    heads = heads or ["measured"]
    lines = [f"| figure | goal | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for goal in GOALS:
        cells = [_cell(goal.figure, each) for each in shown] or [NOT_YET]
        lines.append(f"| {goal.figure} | {goal.limit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: str, records: Sequence[dict[str, Any]]) -> str:
    for record in records:
        for line in record["goals"]:
            if line["figure"] == figure and line["value"] is not None:
                where = "" if record is records[0] else f", at {record['commit'][:7]}"
                return f"{line['shown']}{where}{' (missed)' if line['met'] is False else ''}"
    return NOT_YET


def summary(record: dict[str, Any]) -> str:
    """Return what bench/gpu.sh prints last."""
    is_rehearsal = record["mode"] == "rehearsal"
    words = {True: "met", False: "MISSED", None: ""} if not is_rehearsal else {}
    lines: list[list[object]] = [
        [line["figure"], line["goal"], line["shown"], words.get(line["met"], "")] for line in record["goals"]
    ]
    broken = [f"{name}: {_end(step)}" for name, step in record["steps"].items() if step["status"]]
    gate = record["gate"]
    counts = ", ".join(f"{gate[word]} {word}" for word in ("passed", "failed", "skipped"))
    tests = [f"GPU tests: {counts}", *(f"  failed: {failure['test']}" for failure in gate["failures"])]
    if (told := gate_words(gate)) and not is_rehearsal:
        tests.append(f"beside these figures: {told}")
    note = ["a rehearsal at tiny sizes: nothing here is a figure of anything"] if is_rehearsal else []
    return "\n".join([columns(lines), *note, *tests, *broken])


def _end(step: dict[str, Any]) -> str:
    if step["status"] == OUT_OF_TIME and step["seconds"] == 0:
        return "not begun, since no time was left"
    how = "out of time" if step["status"] == OUT_OF_TIME else f"exit status {step['status']}"
    what = "its figures so far are in the record" if step["partial"] else "without figures"
    return f"{how} after {step['seconds']} s, {what}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    commands.add_parser("machine")
    writing = commands.add_parser("write")
    writing.add_argument("steps", type=Path)
    writing.add_argument("--commit", required=True)
    writing.add_argument("--dirty", action="store_true")
    writing.add_argument("--mode", choices=MODES, default="full")
    writing.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.command == "table":
        print(table())
        return 0
    if args.command == "machine":
        print(json.dumps(machine()))
        return 0
    record = compose(args.steps, args.commit, args.dirty, args.mode)
    path = write(record, args.output)
    print(summary(record))
    print(f"record: {path}")
    gate, is_whole = record["gate"], args.mode == "full"
    return int(gate["failed"] > 0 or (is_whole and gate_words(gate) != ""))


if __name__ == "__main__":
    sys.exit(main())
