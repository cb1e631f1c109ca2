"""The command that writes a report."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

import pabee_fast as pf
from pabee_fast.calibration.learned_rows import LearnedRows, remember
from pabee_fast.cli import app
from pabee_fast.models.heads import BACKBONE
from pabee_fast.report.make import make_report
from pabee_fast.report.settings import ReportSettings
from tests.conftest import tiny_model, tiny_stock
from tests.report.pages import read


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a model with heads, a truncated one, and a labelled table."""
    folder = tmp_path_factory.mktemp("report")
    options: dict[str, Any] = {"vocab_size": len(tiny_tokenizer), "num_labels": 2}
    for seed in (0, 1):
        tiny_model("bert", seed=seed, **options).save_pretrained(folder / f"seed-{seed}")
    tiny_stock("bert", seed=2, **options | {"num_hidden_layers": 3}).save_pretrained(folder / "truncated")
    for name in ("seed-0", "seed-1", "truncated"):
        tiny_tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)
    words = ["a", "bad", "film", "good", "is", "very"]
    rows = [{"text": " ".join(draw.choices(words, k=5)), "label": i % 2} for i in range(60)]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(folder: Path, output: Path, *more: object) -> Result:
    words = ["report", folder / "dev.jsonl", "--model", folder / "seed-0", "--output", output, "--device", "cpu"]
    return CliRunner().invoke(app, [str(word) for word in (*words, *more)])


def test_the_command_writes_a_page_from_seeds_and_truncated_models(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    result = run(folder, output, "--model", folder / "seed-1", "--truncated", folder / "truncated", "--name", "tiny",
                 "--dtype", "float32")  # fmt: skip
    assert result.exit_code == 0, result.output
    said = " ".join(read(output.read_text(encoding="utf-8")).words)
    for words in ("tiny on dev.jsonl", "3 layers (1)", "2; ± is", "float32 (asked for)", "cpu (", "LABEL_0"):
        assert words in said, words


def test_seeds_that_number_their_labels_otherwise_are_read_by_name(folder: Path, tmp_path: Path) -> None:
    names = ("bad", "good")
    model = pf.from_pretrained(folder / "seed-0")
    tokenizer = AutoTokenizer.from_pretrained(folder / "seed-0")
    for place, order in (("one", [0, 1]), ("other", [1, 0])):
        for head in (model.classifier, *model.exit_heads):
            head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
        model.config.id2label = {i: names[label] for i, label in enumerate(order)}
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
        model.save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    table = tmp_path / "named.jsonl"
    lines = [json.dumps({"text": row["text"], "label": names[row["label"]]}) + "\n" for row in rows]
    table.write_text("".join(lines))
    settings = ReportSettings(
        tables=[str(table)],
        model=[str(tmp_path / "one"), str(tmp_path / "other")],
        output=tmp_path / "report.html",
        dtype="float32",
        device="cpu",
    )
    said = " ".join(read(make_report(settings).page).words)
    assert said.count("±") == 1, "one model twice: nothing differs, and only the legend has the sign"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--label-column", "stars"], "no label column 'stars'"),
        (["--metric", "Spearman"], "accuracy, F1, Matthews"),
        (["--tolerance", "0.5"], "tolerance where answers are values"),
        (["--truncated", "SEED"], "has 6 layers, the model 6"),
    ],
)
def test_what_the_command_cannot_use_names_the_fix(
    options: list[str], says: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_head")  # it is said before the model runs
    options = [str(folder / "seed-0") if word == "SEED" else word for word in options]
    result = run(folder, tmp_path / "report.html", *options)
    assert isinstance(result.exception, pf.InputError), result.output
    assert says in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_page_whose_directory_is_absent_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    assert "there is no directory" in str(run(folder, tmp_path / "absent" / "report.html").exception)


@pytest.mark.parametrize("max_length", [None, 8])
def test_a_stored_policy_is_shown_with_what_its_promise_is_worth_here(
    max_length: int | None, folder: Path, tmp_path: Path
) -> None:
    tuned = Path(shutil.copytree(folder / "seed-0", tmp_path / "tuned"))
    texts = [f"good film {' '.join(['very'] * (i % 7))} {['bad', 'is', 'a'][i % 3]} {i}" for i in range(300)]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["tune", table, "--model", tuned, "--epsilon", 0.5, "--delta", 0.4, "--dtype", "float32", "--device", "cpu"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    more = [] if max_length is None else ["--max-length", max_length]
    words = ["report", folder / "dev.jsonl", "--model", tuned, "--output", tmp_path / "report.html", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--dtype", "float32", *more]])
    assert result.exit_code == 0, result.output
    said = " ".join(read((tmp_path / "report.html").read_text(encoding="utf-8")).words)
    assert ("void here: " in said) == (max_length is not None)
    assert "with probability at least" in said and "by the clock" in said
    assert "by the clock" in result.output and ("void here: " in result.output) == (max_length is not None)


def test_a_report_says_how_many_of_its_rows_the_model_has_learned_from(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, learned = pf.from_pretrained(folder / "seed-0"), LearnedRows()
    lines = (folder / "dev.jsonl").read_text().splitlines()
    learned.add([(json.loads(line)["text"],) for line in lines[:30]])
    remember(model.config, BACKBONE, learned)
    model.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(folder / "seed-0").save_pretrained(tmp_path / "trained")
    for place, says in (
        (folder / "seed-0", "no row could be looked up"),
        (tmp_path / "trained", "learned from 30 of "),
    ):
        caplog.clear()
        words = ["report", folder / "dev.jsonl", "--model", place, "--output", tmp_path / f"{place.name}.html"]
        assert CliRunner().invoke(app, [str(word) for word in [*words, "--device", "cpu"]]).exit_code == 0
        assert says in " ".join(read((tmp_path / f"{place.name}.html").read_text(encoding="utf-8")).words)
        assert ("flatter" in caplog.text) == (place.name == "trained")
    caplog.clear()
    assert run(folder, tmp_path / "two.html", "--model", tmp_path / "trained").exit_code == 0
    assert f"of {tmp_path / 'trained'}, fit or train has learned from 30 of" in caplog.text


def test_an_output_is_html_and_never_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    assert "name it .html" in str(run(folder, tmp_path / "report.pdf").exception)
    (tmp_path / "report.html").write_text("precious")
    assert "--overwrite" in str(run(folder, tmp_path / "report.html").exception)
    assert (tmp_path / "report.html").read_text() == "precious"
