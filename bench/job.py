"""Whole jobs, table to table: what the machinery around the engine costs, and what it survives.

    python -m bench.job all --work DIRECTORY        # or: ratio, feed, memory, resume, kills, ray
    nice -n 15 python -m bench.job memory --work DIRECTORY

ratio   rows/s of the whole job against the engine's alone on the same rows, tokenized before (BERT-base)
feed    rows/s of the host pipeline: the same job with an engine that answers at once, see `feed`
memory  peak memory at 1,000,000 short rows against 100,000, and whether rows/s stay the same (hidden 64, 2 layers)
resume  seconds until a job with 1,000 finished parts computes its first new row, besides loading the model
kills   a job killed at every named moment and 50 times at random, resumed each time, compared with an undisturbed one
ray     two workers of one thread on Ray against one process of two threads (BERT-base)
overlap jobs with 1 to 4 parts under way (hidden 64, 2 layers)

The last line on stdout is one JSON document. Random weights, made-up texts with sst2's lengths.
"""

import argparse
import functools
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import feed, job_cases, kills, timing
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.executors import LocalExecutor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.policies import parse_policy


def recipe(model: Path, policy: str = "full-depth", **options: Any) -> Recipe:
    """Of a float32 worker on the CPU."""
    return Recipe(str(model), parse_policy(policy), device="cpu", dtype="float32", **options)


def run_job(
    source: Path,
    target: Path,
    executor: Executor,
    on_part: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> Progress:
    """Return a job from its beginning."""
    for leftover in (target, Path(f"{target}.parts")):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return Job([str(source)], str(target), Columns(["text"]), JobOptions(**options)).run(executor, on_part)


def measure_ratio(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Whole job against engine alone, in turns."""
    model = job_cases.make_model(work / "bert-base")
    source = job_cases.make_table(work / f"{args.rows}.csv", args.rows)
    found: dict[str, Any] = {"rows": args.rows, "rounds": args.rounds}
    for policy in ("full-depth", "fixed-depth:4"):
        worker, about = recipe(model, policy).worker()
        scorer = worker.scorer
        texts = [(line.partition(",")[2].rstrip("\n"),) for line in source.read_text().splitlines()[1:]]
        batches = [scorer.batch(texts[i : i + scorer.window]) for i in range(0, len(texts), scorer.window)]

        def engine_alone() -> None:
            for batch in batches:  # noqa: B023 - called before the next policy's
                scorer.engine.run(batch, scorer.policy)  # noqa: B023

        with LocalExecutor(worker, about) as executor:
            summaries: list[Progress] = []

            def whole_job() -> None:
                summaries.append(run_job(source, work / "out.csv", executor))  # noqa: B023

            seconds = timing.interleaved({"job": whole_job, "engine": engine_alone}, args.rounds, torch.device("cpu"))
            spent = [time.process_time()]
            for measured in (whole_job, engine_alone):
                measured()
                spent.append(time.process_time())
        last = summaries[-1]
        found[policy] = {
            # Of one more round: other processes on the machine do not disturb it, and it does not see waiting.
            "ratio_of_cpu_seconds": (spent[2] - spent[1]) / (spent[1] - spent[0]),
            "device_busy": last.tally.seconds["compute"] / last.seconds,
            "ratio": timing.median_ratio(seconds["engine"], seconds["job"]),
            "job_rows_per_second": args.rows / statistics.median(seconds["job"]),
            "engine_rows_per_second": args.rows / statistics.median(seconds["engine"]),
            "spent": {**last.tally.seconds, "wait": last.wait, "whole": last.seconds},
        }
    return found


def measure_memory(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return peak memory and rows/s of two jobs, each in a process of its own."""
    job_cases.make_model(work / "tiny", **job_cases.TINY)
    found: dict[str, Any] = {}
    for rows in (args.many_rows // 10, args.many_rows):
        source = job_cases.make_table(work / f"short-{rows}.csv", rows, lengths=range(4, 17))
        command = [sys.executable, "-m", "bench.job", "one", "--work", str(work), "--many-rows", str(rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[str(rows)] = json.loads(done.stdout.splitlines()[-1])["one"]
        source.unlink()
    small, large = (found[str(rows)]["peak_megabytes"] for rows in (args.many_rows // 10, args.many_rows))
    return {**found, "peak_ratio": large / small}


def measure_one(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return one job of `measure_memory`, in this process."""
    times: list[tuple[float, int]] = []

    def on_part(progress: Progress) -> None:
        times.append((time.perf_counter(), progress.tally.rows))

    with LocalExecutor(*recipe(work / "tiny", "patience:1").worker()) as executor:
        source = work / f"short-{args.many_rows}.csv"
        summary = run_job(source, work / "short-out.csv", executor, on_part)
    rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(times)]
    tenths = [statistics.median(tenth) for tenth in np.array_split(rates, 10) if len(tenth)]
    middle = statistics.median(tenths)
    return {
        "rows": args.many_rows,
        "rows_per_second": summary.rows_per_second,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "median_rate_of_each_tenth": tenths,
        "largest_deviation_of_a_tenth": max(abs(tenth / middle - 1) for tenth in tenths),
        "first_half_against_second": statistics.median(rates[: len(rates) // 2])
        / statistics.median(rates[len(rates) // 2 :]),
        "spent": {**summary.tally.seconds, "wait": summary.wait, "whole": summary.seconds},
    }


def measure_overlap(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Jobs with one, two, three and four parts under way, in turns: whether tokenizing beside the model pays."""
    source = job_cases.make_table(work / "overlap.csv", 40 * args.rows)
    worker, about = recipe(job_cases.make_model(work / "tiny", **job_cases.TINY)).worker()
    runs: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for under_way in (1, 2, 3, 4):
            executor = stack.enter_context(LocalExecutor(worker, about, under_way))
            target = work / f"overlap-{under_way}.csv"
            runs[str(under_way)] = functools.partial(run_job, source, target, executor, part_rows=1024)
        seconds = timing.interleaved(runs, args.rounds, torch.device("cpu"))
    return {
        "rows": 40 * args.rows,
        "rows_per_second": {name: 40 * args.rows / statistics.median(times) for name, times in seconds.items()},
        "against_one": {name: timing.median_ratio(seconds["1"], times) for name, times in seconds.items()},
    }


PART_ROWS = 100
"""Of a part in `measure_resume`."""


class Enough(Exception):
    """What stops a job in `measure_resume`."""


def measure_resume(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """From the start of a resumed job to its first new row, with the model loaded."""
    model = job_cases.make_model(work / "tiny", **job_cases.TINY)
    # Parts of one size: several are under way, and any of them may be among those that finish first.
    rows = PART_ROWS * (args.parts + math.ceil(args.parts / 10))
    source = job_cases.make_table(work / "many-parts.csv", rows, lengths=range(4, 17))
    target = work / "many-parts-out.csv"

    def stop(progress: Progress) -> None:
        if progress.parts == args.parts:
            raise Enough

    made, about = recipe(model, "patience:1").worker()
    try:
        with LocalExecutor(made, about) as executor:
            run_job(source, target, executor, stop, part_rows=PART_ROWS)
    except Enough:
        pass
    first: list[float] = []
    worker, about = recipe(model, "patience:1").worker()
    worker.on_rows = lambda rows, layers: first.append(time.perf_counter())
    with LocalExecutor(worker, about) as executor:
        started = time.perf_counter()
        job = Job([str(source)], str(target), Columns(["text"]), JobOptions(part_rows=PART_ROWS))
        summary = job.run(executor)
    return {"parts": args.parts, "rows_resumed": summary.resumed, "seconds_to_first_new_row": first[0] - started}


def measure_kills(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the kills, in a process that loads nothing else."""
    job_cases.make_model(work / "tiny", **job_cases.TINY)
    source = job_cases.make_table(work / "killed.csv", 3_000, lengths=range(4, 17))
    words = ["--model", work / "tiny", "--input", source, "--work", work / "kills", "--random", args.kills]
    command = [sys.executable, "-m", "bench.kills", *map(str, words), "--part-rows", "100"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    lost = [record for record in found["records"] if not record["same"]]
    named = {"points": list(kills.POINTS), "lost": lost}
    return {name: found[name] for name in ("kills", "survived", "seconds_undisturbed")} | named


def measure_ray(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return two Ray workers of one thread against one process of two, jobs in turns, start-up left out."""
    import ray

    from pabee_fast.jobs.ray import RayExecutor

    model = job_cases.make_model(work / "bert-base")
    source = job_cases.make_table(work / f"ray-{args.rows}.csv", args.rows)
    options = {"part_rows": max(1, args.rows // 16)}
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    environment = {"env_vars": {"PYTHONPATH": os.getcwd()}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    with RayExecutor(recipe(model, threads=1), 2) as on_ray, LocalExecutor(*recipe(model).worker()) as local:
        run = {
            "ray": lambda: run_job(source, work / "ray-out.csv", on_ray, **options),
            "one process": lambda: run_job(source, work / "local-out.csv", local, **options),
        }
        seconds = timing.interleaved(run, args.rounds, torch.device("cpu"))
    ray.shutdown()
    return {
        "rows": args.rows,
        "ratio": timing.median_ratio(seconds["one process"], seconds["ray"]),
        "rows_per_second": {name: args.rows / statistics.median(times) for name, times in seconds.items()},
    }


CASES = {
    "ratio": measure_ratio,
    "feed": feed.measure,
    "memory": measure_memory,
    "resume": measure_resume,
    "kills": measure_kills,
    "ray": measure_ray,
    "overlap": measure_overlap,
    "one": measure_one,
}


def table(figures: dict[str, Any]) -> str:
    """Return the figures beside their goals, in Markdown."""
    lines = [
        f"{figures['hardware']}, torch {figures['torch']}, float32",
        "",
        "| figure | measured | goal |",
        "|---|---|---|",
    ]
    if found := figures.get("ratio"):
        for policy in ("full-depth", "fixed-depth:4"):
            one = found[policy]
            rates = f"{one['job_rows_per_second']:.1f} of {one['engine_rows_per_second']:.1f} rows/s"
            ratios = f"{one['ratio']:.3f} ({rates}; by CPU seconds {one['ratio_of_cpu_seconds']:.3f})"
            lines.append(f"| whole job / engine alone, BERT-base, {policy} | {ratios} | >= 0.90 |")
            lines.append(f"| share of the job in which the engine computes, {policy} | {one['device_busy']:.3f} | |")
    if found := figures.get("feed"):
        lines += feed.table(found)
    if found := figures.get("memory"):
        sizes = [name for name in found if name.isdecimal()]
        peaks = " / ".join(f"{found[size]['peak_megabytes']:.0f}" for size in reversed(sizes))
        large = found[sizes[-1]]
        lines.append(
            f"| peak memory, {sizes[1]} / {sizes[0]} rows | {found['peak_ratio']:.3f} ({peaks} MB) | <= 1.10 |"
        )
        lines.append(
            f"| rows/s, a tenth of the job against the median tenth | {large['largest_deviation_of_a_tenth']:.1%} "
            f"({large['rows_per_second']:,.0f} rows/s) | <= 10 % |"
        )
    if found := figures.get("resume"):
        took = found["seconds_to_first_new_row"]
        lines.append(f"| first new row after {found['parts']} finished parts | {took:.2f} s | < 10 s |")
    if found := figures.get("kills"):
        lines.append(f"| kills survived | {found['survived']} of {found['kills']} | all |")
    if found := figures.get("overlap"):
        ratios = ", ".join(f"{name}: {ratio:.2f}x" for name, ratio in found["against_one"].items())
        lines.append(f"| rows/s with so many parts under way, against one | {ratios} | |")
    if found := figures.get("ray"):
        lines.append(f"| two Ray workers / one process, same threads | {found['ratio']:.3f} | >= 0.85 |")
    return "\n".join(lines)


def main() -> None:
    """Parse options, measure, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["all", *CASES])
    parser.add_argument("--work", type=Path, required=True, help="directory for models and tables")
    parser.add_argument("--rows", type=int, default=512, help="of ratio and ray")
    parser.add_argument("--feed-rows", type=int, default=400_000, help="of feed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many-rows", type=int, default=1_000_000, help="of memory")
    parser.add_argument("--parts", type=int, default=1_000, help="of resume")
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    names = [name for name in CASES if name != "one"] if args.case == "all" else [args.case]
    figures: dict[str, Any] = {"hardware": timing.hardware(torch.device("cpu")), "torch": torch.__version__}
    for name in names:
        figures[name] = CASES[name](args.work, args)
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
