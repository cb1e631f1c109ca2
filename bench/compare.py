"""Two commits on one machine: `python -m bench.compare REV_A REV_B`. Exit status 1 where B is slower beyond noise.

Both are checked out into a temporary folder. The harness is the checkout that runs this, for both: only `pabee_fast`
comes from the commit. Each commit has a process of its own, and the two take turns round by round. Where a process's
memory happens to lie changes times by percents, so processes are started anew for each pair.

The figure of a case is the median over pairs of the median over rounds of B's seconds / A's in the same round. Its
interval is a bootstrap's: pairs are drawn again with replacement, and rounds within them; the middle 95 %. B is slower
where the whole interval lies above 1 + NOISE, and faster where it lies below 1 / (1 + NOISE).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.text import columns

HARNESS = Path(__file__).resolve().parent
NOISE = 0.05
RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """One case's ratio of B's seconds to A's."""

    ratio: float
    low: float
    high: float

    @property
    def word(self) -> str:
        if self.low > 1 + NOISE:
            return "slower"
        return "faster" if self.high < 1 / (1 + NOISE) else "same"

    @classmethod
    def of(cls, ratios: Sequence[Sequence[float]], seed: int = 0) -> "Verdict":
        """From ratios by pair and round, all pairs with as many rounds."""
        table = np.array(ratios)
        rng, (pairs, rounds) = np.random.default_rng(seed), table.shape
        rows = rng.integers(pairs, size=(RESAMPLES, pairs, 1))
        drawn = table[rows, rng.integers(rounds, size=(RESAMPLES, pairs, rounds))]
        medians = np.median(np.median(drawn, axis=2), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        return cls(float(np.median(np.median(table, axis=1))), float(low), float(high))


class Worker:
    """A process that runs the harness's cases on one commit's package."""

    def __init__(self, checkout: Path, folder: Path, arguments: Sequence[str]) -> None:
        # An idle process that spins would slow the other one down.
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{checkout}", "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "bench.compare_worker", str(checkout), *arguments]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cases: dict[str, str | None] = self._read()
        """By name, why a case cannot be run, or None."""

    def round(self) -> dict[str, float]:
        """Return seconds of every case that can be run."""
        assert self._process.stdin is not None
        print("round", file=self._process.stdin, flush=True)
        seconds: dict[str, float] = self._read()
        return seconds

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"the measuring process ended with status {self._process.wait()}; its reason stands above")


@contextlib.contextmanager
def checkouts(repository: Path, revisions: Sequence[str]) -> Iterator[tuple[Path, list[Path]]]:
    """The harness's folder and a worktree of each revision, removed at the end."""
    git = ["git", "-C", str(repository)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "harness"
        folder.mkdir()
        (folder / "bench").symlink_to(HARNESS)
        places = [Path(temporary) / name for name in ("a", "b")]
        try:
            for place, revision in zip(places, revisions, strict=True):
                subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(place), revision], check=True)
            yield folder, places
        finally:
            for place in places:
                subprocess.run([*git, "worktree", "remove", "--force", str(place)], check=False, capture_output=True)


def measure(
    repository: Path, revisions: Sequence[str], *, pairs: int, rounds: int, arguments: Sequence[str]
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Return ratios by case, pair and round; and by case why it cannot be run in one of the two."""
    ratios: dict[str, list[list[float]]] = {}
    missing: dict[str, str] = {}
    with checkouts(repository, revisions) as (folder, places):
        for pair in range(pairs):
            workers = [Worker(place, folder, arguments) for place in places]
            for worker, revision in zip(workers, revisions, strict=True):
                missing |= {name: f"{revision}: {why}" for name, why in worker.cases.items() if why is not None}
            for turn in range(rounds + 1):
                first = (pair + turn) % 2  # neither always follows the other
                seconds = {which: workers[which].round() for which in (first, 1 - first)}
                for name in seconds[0].keys() & seconds[1].keys():
                    if turn == 0:  # what a first round does once
                        ratios.setdefault(name, []).append([])
                    else:
                        ratios[name][-1].append(seconds[1][name] / seconds[0][name])
            for worker in workers:
                worker.close()
    return ratios, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, prints the table and, as the last line, one JSON document; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=9, help="of each pair, after one that is not counted")
    parser.add_argument("--repository", type=Path, default=HARNESS.parent)
    parser.add_argument("--cases", default="bench.compare_cases", help="the module that makes them")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    ratios, missing = measure(
        args.repository, args.revisions, pairs=args.pairs, rounds=args.rounds, arguments=[args.cases, args.device]
    )
    verdicts = {name: Verdict.of(each) for name, each in sorted(ratios.items())}
    lines: list[list[object]] = [[f"{args.revisions[1]} / {args.revisions[0]}, seconds", "ratio", "95 %", ""]]
    lines += [
        [name, f"{v.ratio:.3f}", f"{v.low:.3f} to {v.high:.3f}", v.word if v.word != "same" else ""]
        for name, v in verdicts.items()
    ]
    print(columns(lines))
    for name, why in sorted(missing.items()):
        print(f"{name}: not compared, {why}")
    slower = [name for name, verdict in verdicts.items() if verdict.word == "slower"]
    print(json.dumps({"slower": slower, "ratios": {name: vars(v) for name, v in verdicts.items()}, "missing": missing}))
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
