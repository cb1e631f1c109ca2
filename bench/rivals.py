"""What others run against our full depth and early exit, on the same rows on a CPU: `python -m bench.rivals`.

A model's directory with heads (`--model`), labelled texts to choose a policy by (`--calibrate`) and others that are
judged and timed (`--rows`; JSON lines of `text` and `label`, gzip too); without a model BERT-base with random weights
on made-up rows, whose exits are given. Those that take padded batches get the rows tokenized and sorted by length, each
at the batch size that served it best on the first rows. Those that take texts tokenize them too.

early exit    the fastest policy by which, at 95 %, at most the named share of answers is not full depth's
equal labels  share of rows whose label is stock transformers', which runs in float32
difference    the largest, of logits

Before anything is timed its answers are checked: a float32 way at full depth whose logits are not stock's to 1e-4 of
the largest is left out, and so is what cannot be had; a line says why. Ways take turns; figures are medians of rounds.
`--keep` writes the figures to `bench/figures/` and their table into the README beside this file.
"""

import argparse
import functools
import importlib.metadata
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

import pabee_fast as pf
from bench import cases, rival_ways, timing
from bench.endtoend import stock_batches
from bench.rival_cases import MOST_TOKENS, Case, random_case, trained_case
from bench.rival_table import keep, table
from bench.rival_ways import LeftOut, OfTexts, Padded
from bench.text import Tell, add_so_far, teller
from pabee_fast.runtime.engine import Engine
from pabee_fast.runtime.pack import PackedBatch

CPU = torch.device("cpu")
TOLERANCE = 1e-4
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "sentence-transformers")


class Ours(NamedTuple):
    """One of our ways to score all rows."""

    run: Callable[[], Tensor]  # logits [rows, classes], in input order
    is_exact: bool  # stock's logits are expected of it
    about: Mapping[str, Any]


Over = Callable[[int, int], Callable[[], Tensor]]
"""So many of the first rows and a batch size, to what scores them."""


def on_padded(case: Case, way: Padded) -> Over:
    """Make a way run on the rows sorted by length, each batch padded to its longest."""

    def over(rows: int, size: int) -> Callable[[], Tensor]:
        batches = stock_batches(cases.Rows(case.rows.input_ids[:rows], ()), size, CPU)

        def run() -> Tensor:
            logits = torch.empty(rows, case.stock.config.num_labels)
            for members, batch in batches:
                logits[torch.from_numpy(members)] = way(batch)
            return logits

        return run

    return over


def on_texts(case: Case, way: OfTexts) -> Over:
    """Make a way run on the rows' texts."""
    return lambda rows, size: functools.partial(way, case.texts[:rows], size)


def others(case: Case, work: Path) -> dict[str, tuple[Callable[[], Over], bool]]:
    """Return by name how each is made, and whether stock's logits are expected of it."""
    stock, directory = case.stock, case.directory
    some = [batch for _, batch in stock_batches(cases.Rows(case.rows.input_ids[:256], ()), 8, CPU)]
    ways: dict[str, tuple[Callable[[], Padded], bool]] = {
        "stock transformers": (lambda: rival_ways.stock(stock), True),
        "unpadded, as sdadas/unpad-impl": (lambda: rival_ways.unpadded(stock), True),
        "torch.compile": (lambda: rival_ways.compiled(stock), True),
        "ONNX Runtime": (lambda: rival_ways.onnx_runtime(stock, work), True),
        "OpenVINO": (lambda: rival_ways.openvino(stock, work), True),
        "OpenVINO, bf16": (lambda: rival_ways.openvino(stock, work, precision="bf16"), False),
        "torch, int8": (lambda: rival_ways.int8(stock), False),
        "ONNX Runtime, int8": (lambda: rival_ways.onnx_runtime(stock, work, in_int8=True), False),
        "OpenVINO, int8": (lambda: rival_ways.openvino(stock, work, in_int8=True, rows=some), False),
    }
    found: dict[str, tuple[Callable[[], Over], bool]] = {
        name: (functools.partial(_made, case, make), is_exact) for name, (make, is_exact) in ways.items()
    }
    if directory is not None:
        piped = functools.partial(rival_ways.in_pipeline, directory, CPU, torch.float32)
        crossed = functools.partial(rival_ways.cross_encoder, directory, CPU, torch.float32)
        found["pipeline, from texts"] = (lambda: on_texts(case, rival_ways.by_length(piped())), True)
        found["CrossEncoder, from texts"] = (lambda: on_texts(case, crossed()), False)
    return found


def _made(case: Case, make: Callable[[], Padded]) -> Over:
    return on_padded(case, make())


def ours(case: Case, epsilons: Sequence[float]) -> Iterator[tuple[str, Ours]]:
    """Yield our ways: float32 and int8, at full depth and with exits, and from texts."""
    for precision in ("", ", int8"):
        model = rival_ways.quantised(case.model) if precision else case.model
        engine = Engine(model)
        policies: dict[str, pf.Policy] = {"full depth": pf.FullDepth()}
        if case.calibrating is None:
            policies["early exit, given exits"] = pf.Scheduled(case.rows.exit_layers)
        else:
            texts, labels = case.calibrating
            traced = pf.trace(model, case.tokenizer, texts, labels=labels, max_length=MOST_TOKENS)
            for epsilon in epsilons:
                policies[f"early exit, {epsilon:.0%}"] = pf.calibrate(traced, epsilon=epsilon).policy
        for name, policy in policies.items():
            results = engine.run(case.batch, policy)
            lengths, exits = case.batch.lengths, results.exit_layers.numpy()
            told = "given" if isinstance(policy, pf.Scheduled) else str(policy)
            about = {"policy": told, "mean_exit_layer": float(exits.mean()),
                     "layer_ratio": float(lengths.sum() * len(engine.layers) / (lengths * exits).sum())}  # fmt: skip
            is_full = isinstance(policy, pf.FullDepth)
            yield (
                f"pabee_fast, {name}{precision}",
                Ours(functools.partial(_run, engine, case.batch, policy), is_full and not precision, about),
            )
            if case.tokenizer is not None and not precision:
                scorer = pf.Scorer(model, case.tokenizer, policy=policy, max_length=MOST_TOKENS)
                yield (
                    f"pabee_fast, {name}, from texts",
                    Ours(functools.partial(_score, scorer, case.texts), is_full, about),
                )


def _run(engine: Engine, batch: PackedBatch, policy: pf.Policy) -> Tensor:
    return engine.run(batch, policy).logits


def _score(scorer: pf.Scorer, texts: Sequence[str]) -> Tensor:
    return scorer.run(scorer.batch(texts), scorer.policy).logits


def best_size(over: Over, sizes: Sequence[int], probed: int) -> int:
    """Return the batch size by which a way was fastest on the first rows."""
    variants = {str(size): over(probed, size) for size in sizes}
    seconds = timing.interleaved(variants, 1, CPU)
    return min(sizes, key=lambda size: min(seconds[str(size)]))


@torch.no_grad()
def measure(args: argparse.Namespace, case: Case, work: Path, tell: Tell) -> dict[str, Any]:
    """Run the case and return its figures."""
    rows, lengths = len(case.rows.input_ids), case.rows.lengths
    figures: dict[str, Any] = {
        "hardware": timing.hardware(CPU),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "model": case.name,
        "trained": case.directory is not None,
        "rows": rows,
        "tokens_per_row": {"mean": float(lengths.mean()), "min": int(lengths.min()), "max": int(lengths.max())},
        "rounds": args.rounds,
        "left_out": {},
        "ways": {},
    }
    left_out, ways, sizes = figures["left_out"], {}, {}

    # 1. What can be had, at its best batch size.
    exact = set()
    for name, (make, is_exact) in others(case, work).items():
        try:
            over = make()
            sizes[name] = best_size(over, args.batches, min(args.probe, rows))
            ways[name] = over(rows, sizes[name])
        except LeftOut as why:
            left_out[name] = str(why)
        except Exception as error:  # of another's library: the rest is still to be measured
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if is_exact:
            exact.add(name)
    for name, way in ours(case, args.epsilon):
        ways[name] = way.run
        figures["ways"][name] = dict(way.about)
        if way.is_exact:
            exact.add(name)

    # 2. Its answers, against stock's.
    answers = {name: run() for name, run in ways.items()}
    reference = answers["stock transformers"]
    for name, logits in answers.items():
        difference = float((logits - reference).abs().max())
        if name in exact and not difference <= TOLERANCE * reference.abs().max():
            left_out[name] = f"its logits differ from stock's by {difference:.1e}"
            del ways[name]
            continue
        about = figures["ways"].setdefault(name, {})
        about |= {"batch": sizes.get(name), "largest_difference": difference}
        about["equal_labels"] = float((logits.argmax(1) == reference.argmax(1)).double().mean())
        if case.labels is not None:
            about["accuracy"] = float((logits.argmax(1) == case.labels).double().mean())

    # 3. Its time.
    for seconds in timing.turns(ways, args.rounds, CPU, uncounted=0):
        for name, times in seconds.items():
            if times:
                against = timing.median_ratio(seconds["stock transformers"], times)
                figures["ways"][name] |= {
                    "rows_per_second": rows / statistics.median(times),
                    "against_stock": against,
                    "seconds": times,
                }
        tell(figures)
    return figures


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Parse options, measure, print the table and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a directory with heads; default: BERT-base, random weights")
    parser.add_argument("--calibrate", type=Path, help="with --model: texts that choose the policies")
    parser.add_argument("--rows", type=Path, help="with --model: texts that are judged and timed")
    parser.add_argument("--made-up-rows", type=int, default=96, help="without --model: how many")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--probe", type=int, default=64, help="rows by which a batch size is chosen")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", action="store_true")
    add_so_far(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()  # of stock, that it leaves heads out
    if args.model is None:
        case = random_case(args.made_up_rows)
    elif args.calibrate is None or args.rows is None:
        parser.error("--model needs --calibrate and --rows")
    else:
        case = trained_case(args.model, args.calibrate, args.rows)
    with tempfile.TemporaryDirectory() as work:
        figures = measure(args, case, Path(work), teller(args.so_far))
    if args.keep:
        keep(figures)
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
