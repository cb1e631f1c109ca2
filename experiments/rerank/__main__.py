"""What dropping candidates saves: `python -m experiments.rerank --data FOLDER`.

MiniLM-L6 learns sentence similarity (stsb) as a cross-encoder of one output. Heads are fitted on candidates of train
sentences (`--heads fit`, which leaves the model as it is), or model and heads go on to learn that model's own scores of
candidates (`--heads taught`, see `teach`). The shortlist is chosen on candidates of dev sentences (`pabee-fast tune
--top-k`), and judged and timed on those of test sentences, against the same model's full depth in a CrossEncoder. A
sentence's candidates are the hundred nearest others of the task by tf-idf, as a first stage would hand them on. Nothing
of the texts is written but below --work; the last line is one JSON document.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sklearn.feature_extraction.text import TfidfVectorizer

import pabee_fast as pf
from bench import timing
from experiments.glue.models import default_encoder
from experiments.glue.steps import MAX_LENGTH, Budget, Run, Steps
from experiments.glue.tasks import TASKS, read_split
from experiments.rerank.teach import Lesson, teach
from pabee_fast.calibration.trace import Trace
from pabee_fast.reranking.calibrate import ListCalibration, calibrate_lists
from pabee_fast.reranking.replay import ListTrace
from pabee_fast.scoring.teacher import full_depth_logits

TASK = TASKS["stsb"]
SPLITS = ("train", "dev", "test")
TRACED = 50
"""Queries of one step that is kept, so that a run that was cut goes on."""


@dataclass(frozen=True)
class Lists:
    """Queries and their candidates."""

    queries: Sequence[str]
    documents: Sequence[Sequence[str]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All, list by list."""
        of_each = zip(self.queries, self.documents, strict=True)
        return [(query, document) for query, documents in of_each for document in documents]

    def __getitem__(self, part: slice) -> "Lists":
        return Lists(self.queries[part], self.documents[part])


def candidates(data: Path, split: str, queries: int, each: int) -> Lists:
    """Return so many first sentences of a split, drawn by a fixed seed, and of each the nearest other sentences."""
    rows = {name: read_split(data, TASK, name).rows for name in SPLITS}
    corpus = sorted({text for of_split in rows.values() for row in of_split for text in row})
    asked = sorted({row[0] for row in rows[split]})
    chosen = [asked[place] for place in np.random.default_rng(0).permutation(len(asked))[:queries]]
    vectors = TfidfVectorizer(sublinear_tf=True).fit(corpus)
    nearness = (vectors.transform(chosen) @ vectors.transform(corpus).T).toarray()
    documents = []
    for query, near in zip(chosen, nearness, strict=True):
        nearest = np.argsort(-near, kind="stable")[: each + 1]
        documents.append([corpus[place] for place in nearest if corpus[place] != query][:each])
    return Lists(chosen, documents)


class RerankSteps(Steps):
    """The steps of this study, each kept on disk."""

    def reranker(self, stock: Path, lists: Lists) -> Path:
        """Return the cross-encoder's directory with heads fitted on candidates, for sentence-transformers too."""
        settings = {"step": "fit", "model": stock.name, "queries": len(lists.queries), "rows": len(lists.pairs)}

        def make(place: Path) -> None:
            model, tokenizer = self.load(stock)
            pf.fit(model, tokenizer, lists.pairs, max_length=MAX_LENGTH, folder=place.parent)
            model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)

        return self._once(f"{stock.name}-candidates", settings, make)

    def taught(self, fitted: Path, lists: Lists, lesson: Lesson) -> Path:
        """Return a model whose layers and heads go on to learn what the fitted one scores candidates at full depth, so
        that its early layers can tell more."""
        settings = {"step": "taught", "model": fitted.name, "rows": len(lists.pairs), "lesson": asdict(lesson)}

        def make(place: Path) -> None:
            model, tokenizer = self.load(fitted)
            scores = full_depth_logits(model, tokenizer, lists.pairs, max_length=MAX_LENGTH)[:, 0]
            teach(model, tokenizer, lists.pairs, scores, lesson, MAX_LENGTH).save_pretrained(place)
            tokenizer.save_pretrained(place)

        return self._once(f"{fitted.name}-taught", settings, make)

    def traced(self, directory: Path, split: str, lists: Lists) -> ListTrace:
        """Return what every head says of all candidates."""
        parts = []
        for first in range(0, len(lists.queries), TRACED):
            part = lists[first : first + TRACED]
            settings = {"step": "lists", "model": directory.name, "split": split, "first": first}
            settings |= {"queries": len(part.queries), "rows": len(part.pairs)}

            def make(place: Path, part: Lists = part) -> None:
                pf.trace(*self.load(directory), part.pairs, max_length=MAX_LENGTH).save(place / "trace")

            parts.append(Trace.load(self._once(f"{directory.name}-{split}-{first}", settings, make) / "trace"))
        whole = functools.reduce(Trace.__add__, parts)
        sizes = torch.tensor([len(documents) for documents in lists.documents])
        return ListTrace(whole, torch.arange(len(sizes)).repeat_interleave(sizes))


def pearson(steps: RerankSteps, directory: Path) -> float:
    """Return the correlation of full depth with the labels of the test rows."""
    split, (model, tokenizer) = read_split(steps.data, TASK, "test"), steps.load(directory)
    scores = full_depth_logits(model, tokenizer, split.rows, max_length=MAX_LENGTH)[:, 0]
    return float(np.corrcoef(scores.numpy(), split.labels)[0, 1])


def overlap(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the share of the expected best that is found, in the mean of queries."""
    ids = [[{one["corpus_id"] for one in of_query} for of_query in ranked] for ranked in (found, expected)]
    return statistics.fmean(len(one & other) / len(other) for one, other in zip(*ids, strict=True))


def clock(directory: Path, policy: pf.Policy, lists: Lists, top_k: int, rounds: int) -> dict[str, Any]:
    """Return seconds and overlaps of CrossEncoder.rank's way, our full depth and the shortlist, taking turns."""
    cross_encoder = CrossEncoder(str(directory), device="cpu", max_length=MAX_LENGTH)
    named: dict[str, Any] = {"device": "cpu", "dtype": "float32", "top_k": top_k, "max_length": MAX_LENGTH}
    full, short = (pf.Reranker.from_pretrained(directory, rule, **named) for rule in (pf.FullDepth(), policy))
    pairs = [list(pair) for pair in lists.pairs]
    variants: dict[str, Callable[[], Any]] = {
        "CrossEncoder.predict": lambda: cross_encoder.predict(pairs, show_progress_bar=False),
        "full depth": lambda: full.rerank(lists.queries, lists.documents),
        "shortlist": lambda: short.rerank(lists.queries, lists.documents),
    }
    processor: dict[str, list[float]] = {name: [] for name in variants}

    def counted(name: str) -> None:
        started = time.process_time()
        variants[name]()
        processor[name].append(time.process_time() - started)

    turns = {name: functools.partial(counted, name) for name in variants}
    seconds = timing.interleaved(turns, rounds, torch.device("cpu"))
    processor = {name: of[-rounds:] for name, of in processor.items()}  # as `seconds`, without the first
    scores = np.split(cross_encoder.predict(pairs), np.cumsum([len(each) for each in lists.documents])[:-1])
    stock = [[{"corpus_id": int(place)} for place in np.argsort(-of, kind="stable")[:top_k]] for of in scores]
    found = short.rerank(lists.queries, lists.documents)
    return {
        "queries": len(lists.queries),
        "pairs": len(pairs),
        "rounds": rounds,
        "hardware": timing.hardware(torch.device("cpu")),
        "dtype": "float32",
        "wall": _times(seconds),
        "processor": _times(processor),
        "overlap_with_cross_encoder": overlap(found, stock),
        "full_depth_overlap_with_cross_encoder": overlap(full.rerank(lists.queries, lists.documents), stock),
        "exits": {str(layer): rows for layer, rows in sorted(short.tally.exits.items())},
    }


def _times(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    stock, full, short = (list(seconds[name]) for name in ("CrossEncoder.predict", "full depth", "shortlist"))
    return {
        "seconds": {name: statistics.median(of) for name, of in seconds.items()},
        "vs_cross_encoder": timing.median_ratio(stock, short),
        "vs_full_depth": timing.median_ratio(full, short),
        "full_depth_vs_cross_encoder": timing.median_ratio(stock, full),
    }


def main() -> None:
    """Parses options, makes what is missing, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of tasks")
    parser.add_argument("--encoder", type=Path, default=default_encoder())
    parser.add_argument("--work", type=Path, default=Path("build/rerank"))
    parser.add_argument("--heads", choices=("fit", "taught"), default="fit")
    parser.add_argument("--taught-queries", type=int, default=200, help="that the taught model learns of")
    parser.add_argument("--epochs", type=int, default=1, help="of its lower layers, then of all")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--fit-queries", type=int, default=200)
    parser.add_argument("--tune-queries", type=int, default=600)
    parser.add_argument("--test-queries", type=int, default=20, help="that are judged and timed")
    parser.add_argument("--epsilon", type=float, default=0.01)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    steps = RerankSteps(args.work, args.encoder, args.data, torch.device("cpu"))
    stock = steps.classifier(Run(TASK, "minilm", 0, Budget("full")))
    learned = candidates(args.data, "train", args.fit_queries, args.candidates)
    directory = steps.reranker(stock, learned)
    if args.heads == "taught":
        lesson = Lesson(lower_epochs=args.epochs, epochs=args.epochs)
        taught = candidates(args.data, "train", args.taught_queries, args.candidates)
        directory = steps.taught(directory, taught, lesson)
    calibration = candidates(args.data, "dev", args.tune_queries, args.candidates)
    found: ListCalibration = calibrate_lists(
        steps.traced(directory, "dev", calibration), args.top_k, epsilon=args.epsilon, delta=args.delta
    )
    for step in found.tested:
        print(f"{step.policy}: cost {step.cost:.3f}, loss {step.loss:.3%}, p {step.p_value:.3g}", flush=True)
    print(f"chosen: {found.policy}; {found.guarantee.statement()}", flush=True)
    timed = candidates(args.data, "test", args.test_queries, args.candidates)
    print(
        json.dumps(
            {
                "task": TASK.name,
                "heads": args.heads,
                "pearson": {"stock": pearson(steps, stock), "reranker": pearson(steps, directory)},
                "candidates": args.candidates,
                "top_k": args.top_k,
                "guarantee": found.guarantee.entry(),
                "tested": [asdict(step) | {"policy": str(step.policy)} for step in found.tested],
                "clock": clock(directory, found.policy, timed, args.top_k, args.rounds),
            }
        )
    )


if __name__ == "__main__":
    main()
