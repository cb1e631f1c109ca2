"""Whole jobs on one device against what bounds them, and stock's ways to do the same: `python -m bench.peers`.

whole job        csv to parquet by the executor that `pabee-fast score` takes, up already and warm
engine alone     the same rows, tokenized before
tokenizer alone  the model's own on all cores (`encode_batch_fast`), or what serves in its place in this process,
                 whichever is faster
of its bound     whole job / the slower of the two: what the machinery around them leaves
stock's ways     transformers' pipeline with rows in input order and sorted by length, and sentence-transformers'
                 CrossEncoder (which sorts) where that is installed, by batch size, on the first rows alone

Random weights, made-up texts with sst2's lengths. A job's answers are held against the engine's before it is timed.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from bench import cases, job_cases, rival_ways, timing
from bench.rival_ways import LeftOut, OfTexts
from bench.text import Tell, add_so_far, teller
from pabee_fast.jobs.executor import Executor
from pabee_fast.jobs.executors import open_executor
from pabee_fast.jobs.job import Columns, Job, JobOptions, Progress
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.policies import parse_policy
from pabee_fast.runtime.device import choose_device, choose_dtype
from pabee_fast.runtime.pack import PackedBatch
from pabee_fast.scoring.scorer import Scorer

POLICIES = ("full-depth", "fixed-depth:4")
WARM_ROWS = 4_096
"""Of the job that is run before any is timed: kernels are compiled, allocations made."""


def measure(args: argparse.Namespace, work: Path, tell: Tell) -> dict[str, Any]:
    """Run it all and return its figures."""
    device = choose_device(args.device)
    dtype, why = choose_dtype("auto", device)
    model = job_cases.make_model(work / "model", **cases.MODELS[args.model])
    source = job_cases.make_table(work / "rows.csv", args.rows)
    few = job_cases.make_table(work / "warm.csv", min(args.rows, WARM_ROWS))
    texts = [line.partition(",")[2].rstrip("\n") for line in source.read_text().splitlines()[1:]]
    found: dict[str, Any] = {
        "hardware": timing.hardware(device),
        "cores": os.cpu_count(),
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": why,
        "torch": torch.__version__,
        "model": args.model,
        "rows": args.rows,
        "rounds": args.rounds,
        "jobs": {},
        "stock_ways": {},
    }
    scorer = Recipe(str(model), parse_policy(POLICIES[0]), device=device.type).worker()[0].scorer
    batches, found["tokenizer_rows_per_second"] = tokenized(scorer, texts)
    tell(found)
    for policy in POLICIES:
        recipe = Recipe(str(model), parse_policy(policy), device=device.type)
        started = time.perf_counter()
        with open_executor(recipe) as executor:
            up = time.perf_counter() - started
            run_job(few, work / "warm.parquet", executor)
            for figures in jobs(args, source, work / "out.parquet", executor, scorer, batches, policy):
                raw = max(found["tokenizer_rows_per_second"].values())
                figures["of_its_bound"] = figures["job_rows_per_second"] / min(raw, figures["engine_rows_per_second"])
                found["jobs"][policy] = {"start_seconds": up, **figures}
                tell(found)
    del scorer, batches
    for name, way in stock_ways(model, device, dtype).items():
        rows = texts[: args.stock_rows]
        for size in args.stock_batches:
            found["stock_ways"][f"{name}, batch {size}"] = stock_rate(way, rows, size)
            tell(found)
    return found


def tokenized(scorer: Scorer, texts: Sequence[str]) -> tuple[list[PackedBatch], dict[str, float]]:
    """Return the rows as batches of a window each, on the host, and rows/s of the tokenizers alone."""
    started = time.perf_counter()
    batches = [scorer.batch(texts[i : i + scorer.window], i) for i in range(0, len(texts), scorer.window)]
    served = time.perf_counter() - started
    core: Any = scorer.tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    started = time.perf_counter()
    for i in range(0, len(texts), scorer.window):
        core.encode_batch_fast(texts[i : i + scorer.window])
    return batches, {
        "what serves, packing included": len(texts) / served,
        "encode_batch_fast": len(texts) / (time.perf_counter() - started),
    }


def jobs(
    args: argparse.Namespace,
    source: Path,
    target: Path,
    executor: Executor,
    scorer: Scorer,
    batches: Sequence[PackedBatch],
    policy: str,
) -> Iterator[dict[str, Any]]:
    """Whole job and engine alone in turns: the figures each time that both have more.

    Raises:
        SystemExit: the job's exit layers are not the engine's.
    """
    rule = scorer.engine.check(parse_policy(policy))

    def engine_alone() -> list[torch.Tensor]:
        return [scorer.engine.run(batch, rule).exit_layers.cpu() for batch in batches]

    summaries: list[Progress] = []

    def whole_job() -> None:
        summaries.append(run_job(source, target, executor))

    expected, variants = torch.cat(engine_alone()), {"engine": engine_alone, "job": whole_job}
    for seconds in timing.turns(variants, args.rounds, choose_device(args.device), uncounted=0):
        if len(summaries) == 1 and pq.read_table(target)["exit_layer"].to_pylist() != expected.tolist():
            raise SystemExit(f"{policy}: the job's rows left at other layers than the engine's")
        if not (seconds["engine"] and seconds["job"]):
            continue
        last = summaries[-1]
        yield {
            "job_rows_per_second": args.rows / statistics.median(seconds["job"]),
            "engine_rows_per_second": args.rows / statistics.median(seconds["engine"]),
            "of_engine": timing.median_ratio(seconds["engine"], seconds["job"]),
            "bound": last.bound,
            "spent": {**last.tally.seconds, "wait": last.wait, "whole": last.seconds},
            "seconds": seconds,
        }


def run_job(source: Path, target: Path, executor: Executor) -> Progress:
    """Return a job from its beginning."""
    return Job([str(source)], str(target), Columns(["text"]), JobOptions(overwrite=True)).run(executor)


def stock_ways(model: Path, device: torch.device, dtype: torch.dtype) -> dict[str, OfTexts]:
    """Return what others would run, by name; it loads the model anew."""
    piped = rival_ways.in_pipeline(model, device, dtype)
    ways = {"pipeline, sorted": rival_ways.by_length(piped), "pipeline, input order": piped}
    with contextlib.suppress(LeftOut):
        ways["CrossEncoder"] = rival_ways.cross_encoder(model, device, dtype)
    return ways


def stock_rate(way: OfTexts, texts: Sequence[str], size: int) -> float:
    """Return rows/s; a batch before warms it."""
    way(texts[:size], size)
    started = time.perf_counter()
    way(texts, size)
    return len(texts) / (time.perf_counter() - started)


def table(found: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = [
        f"{found['model']}, {found['rows']:,} rows of sst2's lengths, csv to parquet, {found['dtype']}, "
        f"{found['hardware']}, {found['cores']} cores, torch {found['torch']}:",
        "",
        "| | rows/s | |",
        "|---|---|---|",
    ]
    for policy, each in found["jobs"].items():
        lines.append(f"| engine alone, {policy} | {each['engine_rows_per_second']:,.0f} | |")
        told = f"{each['of_its_bound']:.3f} of its bound; {each['bound']} bounds it"
        lines.append(f"| whole job, {policy} | {each['job_rows_per_second']:,.0f} | {told} |")
    lines += [
        f"| tokenizer alone: {name} | {rate:,.0f} | |" for name, rate in found["tokenizer_rows_per_second"].items()
    ]
    lines += [f"| stock: {name} | {rate:,.0f} | |" for name, rate in found["stock_ways"].items()]
    return "\n".join(lines)


def main() -> None:
    """Parse options, measure, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=cases.MODELS, default="bert-base")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stock-rows", type=int, default=4_096)
    parser.add_argument("--stock-batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--device", default="auto")
    add_so_far(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(args, Path(work), teller(args.so_far))
    print(table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
