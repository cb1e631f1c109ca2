"""A training that was interrupted goes on from its last epoch, and gives what it would have given."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pabee_fast as pf
from pabee_fast.training import kept as keeping
from pabee_fast.training import train as training
from pabee_fast.training.epochs import Epochs
from pabee_fast.training.kept import Kept, folder_beside, is_begun

Command = Callable[..., int]
Tables = Callable[..., Path]
LEARN = ["--epochs", "4", "--batch-size", "8", "--accumulate", "2", "--learning-rate", "5e-3", "--max-length", "16"]


@pytest.fixture
def dropping(tmp_path: Path, tokenizer: Any, tiny_config: Callable[..., Any]) -> Path:
    """An encoder with dropout, whose masks a seed decides as it decides the order of rows."""
    from transformers import BertModel

    path = tmp_path / "dropping"
    torch.manual_seed(0)
    BertModel(tiny_config(hidden_dropout_prob=0.2)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(epoch: int, monkeypatch: pytest.MonkeyPatch, where: str = "on_epoch_begin") -> None:
    """Interrupt the training in the epoch after `epoch`; a moment after it has begun."""

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if round(state.epoch or 0) == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(Epochs, where, stop, raising=False)


@pytest.mark.parametrize("heads", ["linear", "pabee"])
@pytest.mark.parametrize("after", [1, 3])
def test_it_gives_the_weights_of_an_uninterrupted_one(
    heads: str,
    after: int,
    pabee_fast: Command,
    table: Tables,
    reviews: Any,
    dropping: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, whole, out = table("train.csv", reviews), tmp_path / "whole", tmp_path / "out"
    words: list[Any] = ["train", train, "--eval", train, "--model", dropping, "--head", heads, *LEARN, "--output"]
    assert pabee_fast(*words, whole) == 0
    with monkeypatch.context() as patch:
        stop_after(after, patch)
        assert pabee_fast(*words, out) == 130
    said = capsys.readouterr().err
    assert f"stopped: {after} of 4 epochs are done" in said and "the same command goes on" in said
    assert "Traceback" not in said
    assert is_begun(out) and (out / "model.safetensors").is_file()
    assert pabee_fast(*words, out) == 0
    assert f"going on after epoch {after} of 4" in capsys.readouterr().out
    assert equal(whole, out)
    told, wanted = (json.loads((folder / "training.json").read_text()) for folder in (out, whole))
    assert [one["epoch"] for one in told["epochs"]] == [1, 2, 3, 4]
    assert [one["accuracy"] for one in told["epochs"]] == [one["accuracy"] for one in wanted["epochs"]]
    assert not folder_beside(out).exists() and not folder_beside(whole).exists()


def test_what_was_trained_is_not_trained_again_where_fitting_the_heads_was_interrupted(
    pabee_fast: Command,
    table: Tables,
    reviews: Any,
    dropping: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, whole, out = table("train.csv", reviews), tmp_path / "whole", tmp_path / "out"
    words: list[Any] = ["train", train, "--model", dropping, *LEARN, "--output"]
    assert pabee_fast(*words, whole) == 0

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit_heads", stop)
        assert pabee_fast(*words, out) == 130
    assert "4 of 4 epochs" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Epochs, "on_step_begin", stop, raising=False)
        assert pabee_fast(*words, out) == 0
    assert equal(whole, out)


@pytest.mark.slow
def test_one_that_is_killed_goes_on_from_its_last_whole_epoch(
    table: Tables, reviews: Any, dropping: Path, tmp_path: Path
) -> None:
    train, whole, out = table("train.csv", reviews), tmp_path / "whole", tmp_path / "out"
    words: list[Any] = ["train", train, "--model", dropping, *LEARN, "--output"]
    kill = (
        "import os, signal, sys\n"
        "from pabee_fast import cli\n"
        "from pabee_fast.training.kept import Kept\n"
        "def die(self, checkpoint, epochs):\n"
        "    if len(epochs) == 2: os.kill(os.getpid(), signal.SIGKILL)  # its checkpoint is written, and not recorded\n"
        "    keep(self, checkpoint, epochs)\n"
        "keep, Kept.keep = Kept.keep, die\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", kill, *map(str, words), out], env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    assert len(list(folder_beside(out).glob("checkpoint-*"))) == 2
    assert len(Kept.beside(out).epochs) == 1
    subprocess.run([sys.executable, "-m", "pabee_fast", *map(str, words), whole], check=True)  # as the other began
    subprocess.run([sys.executable, "-m", "pabee_fast", *map(str, words), out], check=True)
    assert equal(whole, out)


def test_settings_or_rows_that_differ_are_refused_in_one_line_and_overwrite_begins_anew(
    pabee_fast: Command,
    table: Tables,
    reviews: Any,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, out = table("train.csv", reviews), tmp_path / "out"
    words = ["train", train, "--model", encoder, "--output", out, *LEARN]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert pabee_fast(*words) == 130
    capsys.readouterr()
    assert pabee_fast(*words, "--seed", 7) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pabee-fast: {folder_beside(out)} holds a training that differs: seed was 0 and is 7")
    assert "--overwrite" in line
    table("train.csv", reviews[:-1])
    assert pabee_fast(*words) == 2
    assert "the rows of train changed" in capsys.readouterr().err
    assert pabee_fast(*words, "--overwrite") == 0
    assert "going on" not in capsys.readouterr().out
    assert not is_begun(out)


def test_one_that_was_stopped_in_its_first_epoch_keeps_nothing_and_begins_anew(
    pabee_fast: Command,
    table: Tables,
    reviews: Any,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, out = table("train.csv", reviews), tmp_path / "out"
    words = ["train", train, "--model", encoder, "--output", out, *LEARN]
    with monkeypatch.context() as patch:
        stop_after(0, patch)
        assert pabee_fast(*words) == 130
    assert "no epoch was done, so that nothing is kept" in capsys.readouterr().err
    assert pabee_fast(*words, "--seed", 7) == 0


def test_a_record_that_is_none_is_told(tmp_path: Path) -> None:
    folder = folder_beside(tmp_path / "out")
    folder.mkdir()
    (folder / keeping.RECORD).write_text("[]")
    with pytest.raises(pf.InputError, match=r"is not what a training wrote .* remove"):
        Kept.beside(tmp_path / "out")


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("pabee_fast.training.fit_table", "fit", "nothing is kept; the same command begins anew"),
        ("pabee_fast.calibration.tune", "trace", "and no policy was chosen; the same command with --overwrite does"),
    ],
)
def test_fit_says_what_is_kept_when_it_is_stopped(
    module: str,
    name: str,
    says: str,
    pabee_fast: Command,
    table: Tables,
    classifier: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{module}.{name}", stop)
    rows = table("texts.jsonl", [{"text": f"{'a very ' * (i % 7)}good film {i}"} for i in range(800)])
    words = ["--model", classifier(), "--output", tmp_path / "out", "--tune", "--epsilon", "0.1"]
    assert pabee_fast("fit", rows, *words) == 130
    said = capsys.readouterr().err
    assert f"pabee-fast: stopped: {'' if name == 'fit' else 'the model with its heads is in '}" in said
    assert says in said and "Traceback" not in said
    assert (tmp_path / "out").exists() == (name == "trace")
