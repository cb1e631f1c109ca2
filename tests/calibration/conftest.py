import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.calibration.tuning import OPTIONS, run, texts, write
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def untuned(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "model"
    tiny_model("bert", vocab_size=len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(untuned: Path) -> tuple[Path, str]:
    """A tuned model's directory, and what the command printed."""
    folder = untuned.parent / "tuned"
    shutil.copytree(untuned, folder)
    table = write(untuned.parent / "calibration.jsonl", texts(200))
    result = run("tune", table, "--model", folder, *OPTIONS)
    assert result.exit_code == 0, result.output
    return folder, " ".join(result.output.split())


@pytest.fixture
def model(untuned: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(untuned, tmp_path / "model"))
