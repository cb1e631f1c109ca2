"""Long texts in stretches, traced, tuned and scored: the promise is of texts, and of how they were read."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pabee_fast as pf
from pabee_fast.scoring.conditions import Conditions
from tests.calibration.tuning import WORDS, error_of, run, write
from tests.conftest import tiny_model
from tests.tolerances import assert_close

POLICIES: list[pf.Policy] = [
    pf.Patience(1), pf.Patience(2, first_layer=2), pf.FixedDepth(3), pf.FullDepth(), pf.Confidence(0.6),
    pf.PatientConfidence(1, 0.5), pf.Vote(1.2),
]  # fmt: skip
LIMIT, STRIDE = 12, 3
OPTIONS = ["--epsilon", "0.3", "--delta", "0.1", "--dtype", "float32", "--device", "cpu"]


def texts(rows: int, seed: int = 0) -> list[str]:
    """Of 1 to 40 words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(rows)]


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any) -> Any:
    return tiny_model("bert", vocab_size=len(tiny_tokenizer))


@pytest.fixture(scope="module")
def made(model: Any, tiny_tokenizer: Any) -> pf.Trace:
    return pf.trace(model, tiny_tokenizer, texts(40), max_length=LIMIT, stride=STRIDE, window=7)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replay_equals_the_scorer(policy: pf.Policy, made: pf.Trace, model: Any, tiny_tokenizer: Any) -> None:
    scorer = pf.Scorer(model, tiny_tokenizer, policy=policy, max_length=LIMIT, stride=STRIDE)
    results, found = list(scorer.score(texts(40))), pf.replay(made, policy)
    assert found.exit_layers.tolist() == [result.exit_layer for result in results]
    assert_close(found.logits.softmax(dim=1), torch.tensor([result.scores for result in results]))


def test_exits_that_are_given_hold_for_all_stretches_of_a_text(made: pf.Trace) -> None:
    exits = tuple(1 + row % 6 for row in range(40))
    found = pf.replay(made, pf.Scheduled(exits))
    assert found.exit_layers.tolist() == list(exits)
    assert_close(found.logits, made.logits[torch.tensor(exits) - 1, torch.arange(40)])


def test_what_is_spent_is_that_of_the_stretches(made: pf.Trace) -> None:
    found, runs = pf.replay(made, pf.Patience(1)), pf.replay(made.runs, pf.Patience(1))
    assert int(found.spent.sum()) == int((runs.exit_layers * runs.lengths).sum())
    assert found.layer_ratio == runs.layer_ratio
    assert int(made.lengths.sum()) == int(made.runs.lengths.sum())
    assert pf.replay(made, pf.FullDepth()).layer_ratio == 1


def test_rows_are_chosen_joined_saved_and_loaded_with_their_stretches(made: pf.Trace, tmp_path: Path) -> None:
    assert made.stretches is not None and int((made.stretches > 1).sum()) > 10
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    whole = pf.replay(made, pf.Patience(1))
    for rows in (order, torch.arange(40) % 3 == 0):
        assert torch.equal(pf.replay(made.select(rows), pf.Patience(1)).exit_layers, whole.exit_layers[rows])
    both = made.select(order[:15]) + made.select(order[15:])
    assert torch.equal(pf.replay(both, pf.Patience(1)).logits, whole.logits[order])
    both.save(tmp_path / "trace.safetensors")
    back = pf.Trace.load(tmp_path / "trace.safetensors")
    assert torch.equal(pf.replay(back, pf.Patience(1)).logits, whole.logits[order])
    assert back.conditions.stride == STRIDE


def test_a_trace_of_cut_texts_is_not_one_of_whole_ones(made: pf.Trace, model: Any, tiny_tokenizer: Any) -> None:
    cut = pf.trace(model, tiny_tokenizer, texts(40), max_length=LIMIT)
    with pytest.raises(
        pf.InputError, match="long texts read in stretches of 12 tokens that overlap by 3, and here they"
    ):
        made + cut
    [said] = cut.conditions.differences(made.conditions)
    assert said == (
        "it was made with long texts cut at 12 tokens, and here they are read in stretches of 12 tokens that overlap "
        "by 3 (leave stride out)"
    )
    assert Conditions("m", "t", "float32", 12, 1) == Conditions(**{"model": "m", "tokenizer": "t"}, dtype="float32",
                                                                max_length=12, texts=1)  # fmt: skip


@pytest.fixture(scope="module")
def tuned(model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model tuned on texts that were read whole."""
    folder = tmp_path_factory.mktemp("stretches") / "model"
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    table = write(folder.parent / "calibration.jsonl", texts(200, 1))
    done = run("tune", table, "--model", folder, "--max-length", LIMIT, "--stride", STRIDE, *OPTIONS)
    assert done.exit_code == 0, done.output
    assert "were cut" not in done.output
    assert "score with --stride 3: the promise is of texts read so" in done.output
    return folder


def test_score_uses_the_policy_where_texts_are_read_as_it_was_tuned(tuned: Path, tmp_path: Path) -> None:
    rows = texts(30, 2)
    table, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    words = ["score", table, "--model", tuned, "--dtype", "float32", "--device", "cpu", "--output"]
    done = run(*words, output, "--stride", STRIDE, "--audit", "1")
    assert done.exit_code == 0, done.output
    guarantee = pf.guarantee_of(pf.from_pretrained(tuned))
    assert guarantee is not None and guarantee.policy != pf.FullDepth()
    assert guarantee.conditions.stride == STRIDE
    assert "read in stretches of 12 tokens that overlap by 3" in guarantee.statement()
    assert f"policy {guarantee.policy}: stored with the model" in done.output
    scorer = pf.Scorer.from_pretrained(tuned, device="cpu", dtype="float32", stride=STRIDE)
    assert scorer.guarantee == guarantee
    found = [json.loads(line) for line in output.read_text().splitlines()]
    early = list(scorer.score(rows))
    assert [row["exit_layer"] for row in found] == [result.exit_layer for result in early]
    full = scorer.__class__.from_pretrained(tuned, "full-depth", device="cpu", dtype="float32", stride=STRIDE)
    disagreed = sum(a.prediction != b for a, b in zip(early, full.predict(rows), strict=True))
    assert f"audit: {disagreed} of 30 rows disagree" in done.output
    done = run(*words, tmp_path / "cut.jsonl")
    assert "void here: it was made with long texts read in stretches of 12 tokens that overlap by 3" in done.output
    assert "(give stride 3)" in done.output


def test_a_trace_file_says_how_its_texts_were_read(tuned: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tuned, tmp_path / "model"))
    from transformers import AutoTokenizer

    loaded = pf.from_pretrained(copy)
    traced = pf.trace(loaded, AutoTokenizer.from_pretrained(copy), texts(200), max_length=LIMIT, stride=STRIDE)
    traced.save(tmp_path / "own.safetensors")
    given = ["tune", "--model", copy, "--trace", tmp_path / "own.safetensors", *OPTIONS]
    assert run(*given).exit_code == 0
    assert "leave the option out, or make a new trace" in error_of(run(*given, "--stride", 1))


def test_fit_learns_from_stretches_and_counts_texts(tuned: Path, tmp_path: Path) -> None:
    table, out = write(tmp_path / "in.jsonl", texts(60, 3)), tmp_path / "fitted"
    words = ["fit", table, "--model", tuned, "--output", out, "--max-length", LIMIT, "--device", "cpu"]
    done = run(*words, "--stride", STRIDE)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "config.json").read_text())["pabee_fast"]["fit"]
    assert (record["rows"], record["held_out"]) == (60, 6)
    assert record["stretches"] > 100


def test_report_judges_texts_by_all_their_stretches(tuned: Path, tmp_path: Path) -> None:
    rows = texts(60, 4)
    scorer = pf.Scorer.from_pretrained(tuned, device="cpu", dtype="float32", stride=STRIDE)
    labels = [int(str(label).removeprefix("LABEL_")) for label in scorer.predict(rows)]
    assert len(set(labels)) > 1
    table, page = write(tmp_path / "dev.jsonl", rows, labels), tmp_path / "report.html"
    words = ["report", table, "--model", tuned, "--output", page, "--stride", STRIDE, "--device", "cpu"]
    done = run(*words, "--dtype", "float32")
    assert done.exit_code == 0, done.output
    assert "accuracy 1.000" in done.output or "accuracy 100" in done.output
    assert "read in stretches of 12 tokens that overlap by 3" in page.read_text()


def test_pairs_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    table = write(tmp_path / "in.jsonl", ["good"])
    for command in ("score", "fit"):
        words = [command, table, "--model", tmp_path, "--output", tmp_path / "out.csv", "--text-pair-column", "text"]
        assert "single texts are read in stretches, and these are pairs" in error_of(run(*words, "--stride", 3))
