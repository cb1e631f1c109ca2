"""`pabee-fast trace`: written once, and read by tune and report, which run no model then."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pabee_fast as pf
from pabee_fast.runtime.engine import Engine
from tests.calibration.tuning import OPTIONS, error_of, run, texts, write

FIXED = ["--dtype", "float32", "--device", "cpu"]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write(tmp_path / "dev.jsonl", texts(200), [row % 3 for row in range(200)])


@pytest.fixture
def traced(model: Path, labelled: Path, tmp_path: Path) -> Path:
    """A trace of the labelled table, whose long texts are read in stretches."""
    output = tmp_path / "dev.safetensors"
    words = ["--label-column", "label", "--max-length", 8, "--stride", 2]
    done = run("trace", labelled, "--model", model, "--output", output, *FIXED, *words)
    assert done.exit_code == 0, done.output
    said = "Trace(200 rows, 6 layers, 3 outputs, label answers, labels), in float32, long texts read in stretches of 8 "
    assert f"{said}tokens that overlap by 2" in done.output and f"wrote {output}" in done.output
    return output


@pytest.fixture
def stopped_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row can be run."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was run")

    for name in ("run", "every_head", "every_feature"):
        monkeypatch.setattr(Engine, name, refuse)


def test_tune_reads_it_with_its_labels_and_runs_no_model(traced: Path, model: Path, stopped_engine: None) -> None:
    for risk in ("disagreement", "accuracy-loss"):
        done = run("tune", "--model", model, "--trace", traced, "--risk", risk, *OPTIONS)
        assert done.exit_code == 0, done.output
    guarantee = pf.guarantee_of(pf.from_pretrained(model))
    assert guarantee is not None and guarantee.risk.name == "accuracy-loss"
    assert (guarantee.conditions.max_length, guarantee.conditions.stride) == (8, 2)


def test_report_says_by_a_trace_what_it_says_by_running_the_model(
    traced: Path, model: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pabee_fast.report.claims.RESAMPLES", 60)
    assert run("tune", "--model", model, "--trace", traced, *OPTIONS).exit_code == 0
    words = ["report", labelled, "--model", model, "--device", "cpu", "--output"]
    own = run(*words, tmp_path / "own.html", "--dtype", "float32", "--max-length", 8, "--stride", 2)
    assert own.exit_code == 0, own.output
    with monkeypatch.context() as patch:
        for name in ("run", "every_head"):
            patch.setattr(Engine, name, None)
        done = run(*words, tmp_path / "by-trace.html", "--trace", traced)
    assert done.exit_code == 0, done.output
    timed = re.compile(r", [\d.]+x by the clock|wrote .*")
    assert timed.search(own.output) and "by the clock" not in done.output
    assert timed.sub("", done.output) == timed.sub("", own.output)
    assert "of which a trace was given" in (tmp_path / "by-trace.html").read_text()


def test_a_trace_of_other_texts_or_of_another_model_is_refused_in_one_line(
    traced: Path, model: Path, labelled: Path, tmp_path: Path
) -> None:
    words = ["report", "--output", tmp_path / "report.html", "--trace", traced, "--device", "cpu"]
    other = write(tmp_path / "other.jsonl", texts(200, 9), [row % 3 for row in range(200)])
    assert f"{traced} is no trace of the texts of {other}" in error_of(run(*words, other, "--model", model))
    pf.Trace.load(traced).select(torch.arange(200)).save(tmp_path / "some.safetensors")
    words[4] = tmp_path / "some.safetensors"
    assert "is no trace of the texts" in error_of(run(*words, labelled, "--model", model))
    words[4] = traced
    assert "dtype='bfloat16', and" in error_of(run(*words, labelled, "--model", model, "--dtype", "bfloat16"))
    changed = pf.from_pretrained(model)
    with torch.no_grad():
        changed.classifier.bias += 1
    pf.restore(changed).save_pretrained(model)
    for command in (["tune", "--model", model, "--trace", traced, *OPTIONS], [*words, labelled, "--model", model]):
        said = error_of(run(*command))
        assert f"{traced} was not made with this model: the model's weights, heads or config are others" in said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--output", "trace.pt"], "a trace is one safetensors file; name it .safetensors"),
        (["--output", "none/t.safetensors"], "there is no directory"),
        (["--output", "t.safetensors", "--label-column", "stars"], "no label column 'stars'"),
        (["--output", "t.safetensors", "--stride", "-1"], "stride=-1"),
    ],
)
def test_what_cannot_be_written_or_read_is_told(
    words: list[str], says: str, untuned: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in error_of(run("trace", labelled, "--model", untuned, *words))


def test_a_file_that_exists_is_replaced_when_told_so(traced: Path, model: Path, labelled: Path) -> None:
    words = ["trace", labelled, "--model", model, "--output", traced, *FIXED]
    assert "exists: name another file, or give --overwrite" in error_of(run(*words))
    assert run(*words, "--overwrite").exit_code == 0
    assert pf.Trace.load(traced).labels is None


def test_a_model_without_heads_is_told_how_to_get_them(tiny_tokenizer: Any, tmp_path: Path, labelled: Path) -> None:
    from tests.conftest import tiny_stock

    tiny_stock("bert", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "stock")
    tiny_tokenizer.save_pretrained(tmp_path / "stock")
    with pytest.raises(pf.PabeeFastError, match="heads"):
        raise run("trace", labelled, "--model", tmp_path / "stock", "--output", tmp_path / "t.safetensors").exception  # type: ignore[misc]
