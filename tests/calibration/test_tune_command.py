"""`pabee-fast tune` as a user runs it, and `score` with what it stored."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

import pabee_fast as pf
from pabee_fast.cli import app
from tests.calibration.tuning import OPTIONS, error_of, run, texts, write
from tests.conftest import tiny_model


def test_the_choice_is_printed_stored_and_written_with_what_it_holds_for(tuned: tuple[Path, str]) -> None:
    folder, printed = tuned
    guarantee = pf.guarantee_of(pf.from_pretrained(folder))
    assert guarantee is not None
    assert guarantee.policy != pf.FullDepth()
    assert (guarantee.rows, guarantee.ordering_rows) == (150, 50)
    assert (guarantee.conditions.dtype, guarantee.conditions.max_length) == ("float32", 48)
    for words in (
        "Frontier by 50 ordering rows", "Tests over 150 other rows", f"chosen: {guarantee.policy}", "at most 0.3",
        "exchangeable with the calibration rows", "unseen by training and by fit", "tokens x layers",
    ):  # fmt: skip
        assert words in printed
    figures = json.loads((folder / "tuning" / "frontier.json").read_text())
    assert figures["guarantee"] == guarantee.entry()
    assert figures["rows"] == 200
    assert figures["device"].startswith("cpu")
    assert any(step["policy"] == str(guarantee.policy) and step["passed"] for step in figures["tested"])
    assert (folder / "tuning" / "frontier.svg").read_text().startswith("<?xml")


def test_the_same_rows_and_seed_give_the_same_files(tuned: tuple[Path, str], model: Path) -> None:
    folder, _ = tuned
    table = folder.parent / "calibration.jsonl"
    assert run("tune", table, "--model", model, *OPTIONS).exit_code == 0
    for name in ("tuning/frontier.svg", "config.json"):
        assert (model / name).read_text() == (folder / name).read_text()


def test_score_uses_the_stored_policy_and_states_its_promise(tuned: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = tuned
    rows = texts(30, seed=1)
    table, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    result = run("score", table, "--model", folder, "--output", output, "--dtype", "float32", "--device", "cpu")
    assert result.exit_code == 0, result.output
    loaded = pf.from_pretrained(folder)
    guarantee = pf.guarantee_of(loaded)
    assert guarantee is not None
    assert f"policy {guarantee.policy}: stored with the model; {guarantee.statement()}" in result.output
    scorer = pf.Scorer(loaded, AutoTokenizer.from_pretrained(folder), policy=guarantee.policy)
    exits = [json.loads(line)["exit_layer"] for line in output.read_text().splitlines()]
    assert exits == [row.exit_layer for row in scorer.score(rows)]
    assert min(exits) < 6


def test_a_policy_asked_for_goes_before_the_stored_one(tuned: tuple[Path, str], tmp_path: Path) -> None:
    table = write(tmp_path / "in.jsonl", texts(3))
    result = run("score", table, "--model", tuned[0], "--output", tmp_path / "out.csv", "--policy", "full-depth")
    assert "policy full-depth: asked for" in result.output


def other_weights(folder: Path) -> None:
    model = pf.from_pretrained(folder)
    with torch.no_grad():
        model.exit_heads[0].bias[0] += 0.01
    model.save_pretrained(folder)


def other_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["very"]})
    tokenizer.save_pretrained(folder)


@pytest.mark.filterwarnings("ignore:patience.6 leaves nowhere")
@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (other_weights, [], "weights, heads or config are others"),
        (other_tokenizer, [], "the tokenizer is another"),
        (None, ["--max-length", "16"], "give max length 48"),
        (None, ["--dtype", "bfloat16"], "give dtype float32"),
    ],
)
def test_a_void_guarantee_is_not_used_and_score_says_once_why(
    change: Any, options: list[str], says: str, tuned: tuple[Path, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tuned[0], tmp_path / "model"))
    if change is not None:
        change(folder)
    table = write(tmp_path / "in.jsonl", texts(3))
    options = [*options, *([] if "--dtype" in options else ["--dtype", "float32"])]
    result = run("score", table, "--model", folder, "--output", tmp_path / "out.csv", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    assert result.output.count("is void here") == result.output.count(says) == 1
    assert "policy full-depth: since what is stored with the model" in result.output


def test_figures_and_a_stream_state_the_promise_too(tuned: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = tuned
    guarantee = pf.guarantee_of(pf.from_pretrained(folder))
    assert guarantee is not None
    table = write(tmp_path / "in.jsonl", texts(3))
    options = ["--model", folder, "--dtype", "float32", "--device", "cpu"]
    result = run("score", table, *options, "--output", tmp_path / "out.csv", "--log-format", "json")
    [end] = [json.loads(line) for line in result.stderr.splitlines() if '"end"' in line]
    assert end["policy"]["name"] == str(guarantee.policy) and guarantee.statement() in end["policy"]["reason"]
    result = CliRunner().invoke(app, ["score", "-", *map(str, options), "--output", "-"], input=table.read_text())
    assert f"policy {guarantee.policy}: stored with the model; {guarantee.statement()}" in result.stderr
    assert len(result.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_hidden_layers": 7}, "policy patience:6: the default, since `pabee-fast tune` has stored none"),
        ({}, "policy full-depth: since `pabee-fast tune` has stored none .* patience:6, leaves nowhere in 6 layers"),
        ({"num_labels": 1, "num_hidden_layers": 7}, "policy full-depth: since .* needs a threshold for values"),
    ],
)
def test_without_a_stored_policy_score_says_what_it_does_and_why(
    options: dict[str, int], says: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model("bert", vocab_size=len(tiny_tokenizer), **options).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    table = write(tmp_path / "in.jsonl", texts(3))
    result = run("score", table, "--model", tmp_path / "model", "--output", tmp_path / "out.csv")
    assert re.search(says, result.output), result.output


def test_a_promise_for_single_texts_is_void_for_pairs(tuned: tuple[Path, str], tmp_path: Path) -> None:
    rows = [{"text": one, "other": two} for one, two in zip(texts(3), texts(3, seed=1), strict=True)]
    table = tmp_path / "in.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", tuned[0], "--dtype", "float32", "--output", tmp_path / "out.csv"]
    result = run("score", table, *options, "--text-pair-column", "other")
    assert "void here: it was made with single texts and these are pairs of texts" in result.output
    assert "stored with the model; " in run("score", table, *options, "--overwrite").output


def test_info_tells_the_stored_policy(tuned: tuple[Path, str], model: Path) -> None:
    guarantee = pf.guarantee_of(pf.from_pretrained(tuned[0]))
    assert guarantee is not None
    assert f"{guarantee.policy}; {guarantee.statement()}" in run("info", "--model", tuned[0]).output
    assert "none stored" in run("info", "--model", model).output


def test_a_table_shows_its_numbers_in_80_columns(tuned: tuple[Path, str]) -> None:
    """A terminal's width, and that of a log; policies wrap."""
    assert "…" not in tuned[1]


def test_labels_bound_the_loss_of_accuracy_and_other_rows_may_choose(model: Path, tmp_path: Path) -> None:
    names = list(pf.from_pretrained(model).config.label2id)
    labels = [names[i % 3] for i in range(100)]
    table = write(tmp_path / "in.jsonl", texts(100), labels)
    order = write(tmp_path / "order.jsonl", texts(40, seed=2), labels[:40])
    options = ["--risk", "accuracy-loss", "--label-column", "label", "--order", order, "--plot", "png"]
    result = run("tune", table, "--model", model, *options, "--output", tmp_path / "here", *OPTIONS)
    assert result.exit_code == 0, result.output
    guarantee = pf.guarantee_of(pf.from_pretrained(model))
    assert guarantee is not None
    assert (guarantee.risk.name, guarantee.rows, guarantee.ordering_rows) == ("accuracy-loss", 100, 40)
    found = json.loads((tmp_path / "here" / "frontier.json").read_text())
    assert f"full depth is right on {found['full_depth_accuracy']:.1%} of these rows" in result.output
    assert (tmp_path / "here" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert not (model / "tuning").exists()


def test_regression_is_tuned_by_distance(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_model("bert", vocab_size=len(tiny_tokenizer), num_labels=1).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    table = write(tmp_path / "in.jsonl", texts(80))
    command = ["tune", table, "--model", tmp_path / "model", *OPTIONS]
    assert "in units of the output" in error_of(run(*command))
    assert "answers with values" in error_of(run(*command, "--risk", "disagreement"))
    result = run(*command, "--tolerance", "0.5")
    assert result.exit_code == 0, result.output
    guarantee = pf.guarantee_of(pf.from_pretrained(tmp_path / "model"))
    assert guarantee is not None
    assert (guarantee.risk.name, guarantee.risk.tolerance) == ("distance", 0.5)


def test_a_trace_stands_for_the_table_and_one_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    loaded, tokenizer = pf.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    pf.trace(loaded, tokenizer, texts(200), max_length=20).save(tmp_path / "own.safetensors")
    result = run("tune", "--model", model, "--trace", tmp_path / "own.safetensors", *OPTIONS)
    assert result.exit_code == 0, result.output
    guarantee = pf.guarantee_of(pf.from_pretrained(model))
    assert guarantee is not None
    assert guarantee.conditions.max_length == 20
    table = write(tmp_path / "order.jsonl", texts(60, seed=3))
    given = ["tune", "--model", model, "--trace", tmp_path / "own.safetensors", *OPTIONS]
    assert run(*given, "--order", table).exit_code == 0
    assert "cut at 20 tokens" in error_of(run(*given, "--max-length", "48"))
    labelled = ("--risk", "accuracy-loss", "--label-column", "stars")
    assert "'stars': a trace holds its labels" in error_of(run(*given, *labelled))
    assert "was made in float32" in error_of(run(*given, "--dtype", "bfloat16"))
    other_weights(model)
    refused = run("tune", "--model", model, "--trace", tmp_path / "own.safetensors", *OPTIONS)
    assert "was not made with this model" in error_of(refused)


def test_nothing_is_stored_unless_wanted(model: Path, tmp_path: Path) -> None:
    before = (model / "config.json").read_text()
    table = write(tmp_path / "in.jsonl", texts(60))
    result = run("tune", table, "--model", model, "--no-store", "--output", tmp_path, *OPTIONS)
    assert result.exit_code == 0, result.output
    assert (model / "config.json").read_text() == before
    assert "stored in" not in result.output


def test_the_result_is_told_before_how_it_was_found(tuned: tuple[Path, str]) -> None:
    places = [
        tuned[1].index(words) for words in ("chosen: ", "promise: ", "of each answer", "Frontier by", "Tests over")
    ]
    assert places == sorted(places)


def test_the_errors_of_each_answer_add_up_to_those_of_the_promise(tuned: tuple[Path, str]) -> None:
    figures = json.loads((tuned[0] / "tuning" / "frontier.json").read_text())
    each = figures["by_answer"]
    assert list(each) == list(pf.from_pretrained(tuned[0]).config.label2id)
    assert sum(of["rows"] for of in each.values()) == figures["guarantee"]["rows"]
    assert sum(of["errors"] for of in each.values()) == figures["guarantee"]["errors"]
    for name, of in each.items():
        if of["rows"]:
            assert f"{name} │ {of['rows']} │ {of['errors']} │ {of['errors'] / of['rows']:.2%}" in tuned[1]


def one_answer(folder: Path, layers: list[int]) -> None:
    """Makes heads of these layers, or the last one, answer the first label whatever the row."""
    model = pf.from_pretrained(folder)
    with torch.no_grad():
        for layer in layers:
            head = model.classifier if layer == 6 else model.exit_heads[layer - 1]
            head.weight.zero_()
            head.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    model.save_pretrained(folder)


def test_a_choice_is_called_trivial_where_full_depth_hardly_varies(model: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "in.jsonl", texts(200))
    one_answer(model, [6])
    said = " ".join(run("tune", table, "--model", model, *OPTIONS).output.split())
    assert "full depth gives 100.0% of these rows one and the same answer" in said
    assert json.loads((model / "tuning" / "frontier.json").read_text())["full_depth_alike"] == 1.0


def test_heads_that_answer_all_rows_alike_are_told_of(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, loaded = write(tmp_path / "in.jsonl", texts(200)), pf.from_pretrained(model)
    full = pf.trace(loaded, AutoTokenizer.from_pretrained(model), texts(200)).logits[-1]
    loaded.classifier.bias.data -= full.median(dim=0).values  # so that it varies
    loaded.save_pretrained(model)
    one_answer(model, [1, 2])
    result = run("tune", table, "--model", model, *OPTIONS)
    assert result.exit_code == 0 and "one and the same answer" not in " ".join(result.output.split())
    assert "the heads of layers 1, 2" in caplog.text


def test_where_rows_are_cut_is_stored_and_every_command_cuts_there(model: Path, tmp_path: Path) -> None:
    table, out = write(tmp_path / "in.jsonl", texts(200)), tmp_path / "out.csv"
    assert run("tune", table, "--model", model, "--max-length", 10, *OPTIONS).exit_code == 0
    loaded, tokenizer = pf.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    assert loaded.config.pabee_fast["max_length"] == pf.Scorer(loaded, tokenizer).max_length == 10
    assert pf.Scorer(loaded, tokenizer, max_length=12).max_length == 12
    assert pf.Scorer(loaded, tokenizer, token_budget=8).max_length == 8
    assert pf.trace(loaded, tokenizer, texts(3)).conditions.max_length == 10
    scored = run("score", table, "--model", model, "--output", out, "--dtype", "float32", "--device", "cpu")
    assert "stored with the model; " in scored.output and "cut at 10 tokens" in scored.output
    assert run("tune", table, "--model", model, *OPTIONS).exit_code == 0
    assert pf.from_pretrained(model).config.pabee_fast["max_length"] == 10
    (model / "config.json").write_text(
        (model / "config.json").read_text().replace('"max_length": 10', '"max_length": "ten"')
    )
    with pytest.raises(pf.CheckpointError, match="max_length is 'ten'"):
        pf.Scorer(pf.from_pretrained(model), tokenizer)


def test_threads_are_those_asked_for(model: Path, tmp_path: Path) -> None:
    before, table = torch.get_num_threads(), write(tmp_path / "in.jsonl", texts(200))
    try:
        assert "cpu (3 threads)" in run("tune", table, "--model", model, "--threads", 3, *OPTIONS).output
    finally:
        torch.set_num_threads(before)
    assert "threads=0" in error_of(run("tune", table, "--model", model, "--threads", 0, *OPTIONS))
