"""bench.families runs, checks its answers before it times, and names what it measured; on tiny sizes."""

import json
from typing import Any

import pytest

from bench import families
from pabee_fast.models import FAMILIES


def test_every_family_has_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 100}
    monkeypatch.setattr(families, "SIZES", families.SIZES | tiny)
    for family in FAMILIES:
        assert families.model_of(family).config.model_type == family


@pytest.mark.parametrize("family", ["mpnet", "gpt2", "vit"])
def test_a_family_is_measured_and_its_line_says_what_missed_its_goal(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"hidden_size": 48, "intermediate_size": 48}
    monkeypatch.setattr(families, "SIZES", families.SIZES | tiny)
    options: Any = ["--family", family, "--rows", "6", "--images", "3", "--rounds", "1", "--stock-batches", "4"]
    monkeypatch.setattr("sys.argv", ["bench.families", *options, "--dtype", "float32"])
    families.main()
    out = capsys.readouterr().out.splitlines()
    (figures,) = json.loads(out[-1]).values()
    assert figures["family"] == family
    assert figures["full_depth_difference"] <= 1e-5
    assert figures["layer_ratio"] > 1
    assert f"| {family} | " in out[-2]
    below = figures["exit_efficiency"] < families.GOALS[family in families.PADDED][0]
    assert ("(goal 0.80)" in out[-2] or "(goal 0.90)" in out[-2]) == below
