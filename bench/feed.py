"""What feeds the engine, alone: `python -m bench.job feed`, whole jobs whose engine answers at once.

Nothing is computed, so that reading, tokenizing, packing, making columns and writing are the load. Parts are a GPU's
(16,384 rows), since a fast device is what they have to feed.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from bench import job_cases
from pabee_fast.jobs.executors import LocalExecutor
from pabee_fast.jobs.job import PART_ROWS, Columns, Job, JobOptions
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.policies import parse_policy
from pabee_fast.runtime.pack import PackedBatch
from pabee_fast.runtime.state import Results


class Instant:
    """In an engine's place: every row leaves at layer 1, with logits that its first token decides."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, batch: PackedBatch, *_: Any) -> Results:
        """Answer a batch without computing anything."""
        first = batch.inputs["input_ids"][torch.from_numpy(batch.starts)].float()
        return Results(torch.stack([first, -first], dim=1), torch.ones(len(first), dtype=torch.int64))


def measure(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return rows/s of the host pipeline, by tokenizer, table and processes that tokenize; variants take turns."""
    rows = args.feed_rows
    source = job_cases.make_table(work / f"feed-{rows}.csv", rows)
    columns = work / f"feed-{rows}.parquet"
    pq.write_table(pyarrow.csv.read_csv(source), columns)
    models = {"wordpiece": job_cases.make_model(work / "tiny", **job_cases.TINY)}
    models["bpe"] = job_cases.make_bpe_model(work / "bpe", source, **job_cases.TINY)
    bpe_rows = rows // 8
    few = job_cases.make_table(work / f"feed-{bpe_rows}.csv", bpe_rows)
    cases: dict[str, tuple[int, Callable[[], dict[str, float]]]] = {
        "wordpiece, csv to parquet": (rows, _job(models["wordpiece"], source, work)),
        "wordpiece, parquet to parquet": (rows, _job(models["wordpiece"], columns, work)),
        "bpe, csv to parquet, in this process": (bpe_rows, _job(models["bpe"], few, work)),
        "bpe, csv to parquet, 1 process": (bpe_rows, _job(models["bpe"], few, work, tokenizers=1)),
        "bpe, csv to parquet, 2 processes": (bpe_rows, _job(models["bpe"], few, work, tokenizers=2)),
        "bpe, encode_batch_fast alone": (bpe_rows, _tokenize(models["bpe"], few)),
    }
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, (_, run) in cases.items():
            seconds[name].append(run())
    found = {
        name: {
            "rows_per_second": count / median(one["wall"] for one in seconds[name]),
            "rows_per_cpu_second": count / median(one["cpu"] for one in seconds[name]),
        }
        for name, (count, _) in cases.items()
    }
    alone = found["bpe, encode_batch_fast alone"]["rows_per_second"]
    shares = {name: one["rows_per_second"] / alone for name, one in found.items() if name.startswith("bpe")}
    return {
        "rows": rows,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "cases": found,
        "of_encode_batch_fast": shares,
    }


def _job(model: Path, source: Path, work: Path, **options: Any) -> Callable[[], dict[str, float]]:
    recipe = Recipe(str(model), parse_policy("full-depth"), device="cpu", dtype="float32", window=8_192, **options)

    def run() -> dict[str, float]:
        worker, about = recipe.worker()
        worker.scorer.engine = Instant(worker.scorer.engine)  # type: ignore[assignment]
        with LocalExecutor(worker, about) as executor:
            worker.scorer.encoder(["w1"])  # so that processes are up, as they are while a real model is loaded
            job = Job(
                [str(source)],
                str(work / "fed.parquet"),
                Columns(["text"]),
                JobOptions(part_rows=PART_ROWS["cuda"], overwrite=True),
            )
            return _timed(lambda: job.run(executor))

    return run


def _tokenize(model: Path, source: Path) -> Callable[[], dict[str, float]]:
    core = Tokenizer.from_file(str(model / "tokenizer.json"))
    core.enable_truncation(512)
    texts = [line.partition(",")[2].rstrip("\n") for line in source.read_text().splitlines()[1:]]
    return lambda: _timed(lambda: core.encode_batch_fast(texts))


def _timed(call: Callable[[], Any]) -> dict[str, float]:
    before = time.perf_counter(), time.process_time()
    call()
    return {"wall": time.perf_counter() - before[0], "cpu": time.process_time() - before[1]}


def table(found: dict[str, Any]) -> list[str]:
    """Return the figures as rows of a Markdown table: what, measured, goal."""
    goals = {"wordpiece, csv to parquet": ">= 100,000", "wordpiece, parquet to parquet": ">= 150,000"}
    lines = []
    for name, one in found["cases"].items():
        told = f"{one['rows_per_second']:,.0f} rows/s ({one['rows_per_cpu_second']:,.0f} a CPU second of this process)"
        lines.append(f"| host pipeline, {found['cores']} cores: {name} | {told} | {goals.get(name, '')} |")
    best = max((one, name) for name, one in found["of_encode_batch_fast"].items() if "alone" not in name)
    lines.append(f"| {best[1]}, against encode_batch_fast alone on all cores | {best[0]:.2f} | >= 0.85 |")
    return lines
