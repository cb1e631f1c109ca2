"""Kills a scoring job again and again, lets it go on each time, and compares what it leaves with an undisturbed run.

    python -m bench.kills --model MODEL --input TABLE --work DIRECTORY --random 50

A kill is SIGKILL, at each named moment of writing (see `pabee_fast.tables.durable.reached`) or at random ones. The
last line on stdout is one JSON document. Exits with 1 where a result differs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pabee_fast.jobs import joining, manifest, output
from pabee_fast.jobs.executors import LocalExecutor
from pabee_fast.jobs.job import Columns, Job, JobOptions
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.policies import parse_policy
from pabee_fast.tables import durable

POINTS = {
    "job: the directory is made": 1,
    "part: before the write": 3,
    "part: after fsync": 3,
    "part: after the rename": 3,
    "manifest: after the append": 4,
    "table: before the write": 1,
    "table: a part was added": 2,
    "table: after fsync": 1,
    "table: after the rename": 1,
    "job: the table has its name": 1,
    "job: a file was removed": 2,
    "job: the manifest is aside": 1,
    "job: the directory is gone": 1,
}
"""Where to kill, and the how many-th time the moment comes."""
OF_A_TABLE = list(POINTS)[list(POINTS).index("table: before the write") :]
"""Those that a directory of parts does not come to."""


def score(args: argparse.Namespace, target: str) -> None:
    """The job, in this process: resumes what is there."""
    # The model is loaded here and not before the fork, which torch's thread pools do not survive.
    recipe = Recipe(args.model, parse_policy(args.policy), device="cpu", dtype="float32", threads=1)
    job = Job([args.input], target, Columns(["text"]), JobOptions(part_rows=args.part_rows))
    with LocalExecutor(*recipe.worker()) as executor:
        job.run(executor)


def in_child(action: Callable[[], None]) -> int:
    """Fork a child for an action; its process id. A fork spares importing everything for each kill."""
    if pid := os.fork():
        return pid
    try:
        action()
    except BaseException as error:
        print(f"the job failed: {error!r}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def kill_at(point: str, times: int) -> None:
    """Make this process kill itself when it reaches a moment for the so many-th time."""
    left = times

    def reached(here: str) -> None:
        nonlocal left
        left -= here == point
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    for module in (durable, joining, manifest, output):
        module.reached = reached  # type: ignore[attr-defined]


def outcome(pid: int) -> str:
    """Return how a child ended: finished, killed, or failed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    return "finished" if os.WEXITSTATUS(status) == 0 else "failed"


def digest(target: str) -> str:
    """Return a hash over what the job left: a table's bytes, or those of all parts."""
    path = Path(target)
    files = [path] if path.is_file() else sorted(path.glob("part-*"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def left_beside(target: str) -> list[Path]:
    """Return what a job has not tidied up beside its table."""
    path = Path(target)
    return [beside for name in (f"{path.name}.parts", f".{path.name}.parts.done")
            if (beside := path.with_name(name)).exists()]  # fmt: skip


def named_kills(args: argparse.Namespace, target: Callable[[str], str], wanted: str) -> list[dict[str, Any]]:
    """Return a job for each named moment, killed there and resumed."""
    records = []
    for number, (point, times) in enumerate(POINTS.items()):
        place = target(f"named-{number}")
        if place.endswith("/") and point in OF_A_TABLE:
            continue

        def killed(point: str = point, times: int = times, place: str = place) -> None:
            kill_at(point, times)
            score(args, place)

        ends = [outcome(in_child(killed))]
        # With its table in place, a job of which nothing but its parts is left is finished by the next run, too.
        ends.append(outcome(in_child(lambda place=place: score(args, place))))  # type: ignore[misc]
        same = ends == ["killed", "finished"] and digest(place) == wanted and not left_beside(place)
        records.append({"kill": point, "ends": ends, "same": same})
    return records


def random_kills(
    args: argparse.Namespace, target: Callable[[str], str], wanted: str, seconds: float
) -> list[dict[str, Any]]:
    """Jobs killed at random moments, five times each where they last so long, then let finish."""
    rng = random.Random(args.seed)
    records: list[dict[str, Any]] = []
    while (left := args.random - len(records)) > 0:
        place, kills = target(f"random-{len(records)}"), min(left, 5)
        ends = []
        for _ in range(kills):
            pid = in_child(lambda place=place: score(args, place))  # type: ignore[misc]
            time.sleep(rng.uniform(0.05, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
            ends.append(outcome(pid))
            if digest_or_none(place) == wanted and not left_beside(place):
                break  # it was done before the kill
        else:
            ends.append(outcome(in_child(lambda place=place: score(args, place))))  # type: ignore[misc]
        same = "failed" not in ends and digest(place) == wanted and not left_beside(place)
        records += [{"kill": "random", "ends": ends, "same": same}] * sum(end == "killed" for end in ends)
        if not any(end == "killed" for end in ends):
            seconds *= 0.8  # the machine has become faster: kill earlier
    return records


def digest_or_none(target: str) -> str | None:
    """`digest` where there is something."""
    return digest(target) if Path(target).is_file() else None


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run an undisturbed job and the killed ones."""
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)

    def target(name: str) -> str:
        place = f"{work / name}{args.suffix}"
        shutil.rmtree(place, ignore_errors=True)
        return place

    undisturbed = target("undisturbed")
    started = time.perf_counter()
    if outcome(in_child(lambda: score(args, undisturbed))) != "finished":
        raise SystemExit("the undisturbed job failed")
    seconds = time.perf_counter() - started
    wanted = digest(undisturbed)
    records = named_kills(args, target, wanted) if args.named else []
    records += random_kills(args, target, wanted, seconds)
    return {
        "kills": len(records),
        "survived": sum(record["same"] for record in records),
        "seconds_undisturbed": seconds,
        "records": records,
    }


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--input", required=True)
    options.add_argument("--work", required=True)
    options.add_argument("--policy", default="patience:1")
    options.add_argument("--suffix", default=".parquet", help="of the output: .csv, .jsonl, .parquet, or / for parts")
    options.add_argument("--part-rows", type=int, default=64)
    options.add_argument("--random", type=int, default=5)
    options.add_argument("--no-named", dest="named", action="store_false")
    options.add_argument("--seed", type=int, default=0)
    return options


def main() -> None:
    """Measure, and print one JSON document."""
    figures = measure(parser().parse_args())
    print(json.dumps(figures))
    sys.exit(figures["survived"] != figures["kills"])


if __name__ == "__main__":
    main()
