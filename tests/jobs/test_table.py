"""A table scored in one call, as the command scores it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pabee_fast as pf
from pabee_fast.calibration.guarantee import store_guarantee
from pabee_fast.calibration.risks import Risk
from pabee_fast.cli import app
from pabee_fast.scoring.conditions import Conditions
from tests.jobs.conftest import put_rows

FIXED: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


def test_one_call_writes_what_the_command_writes_and_tells_how_it_went(small_model: Path, tmp_path: Path) -> None:
    source, parts = put_rows(tmp_path / "in.jsonl", 60, row7=None), list[int]()
    summary = pf.score_table(
        source,
        tmp_path / "out.csv",
        small_model,
        "patience:1",
        part_rows=20,
        audit=0.5,
        on_part=lambda progress: parts.append(progress.parts),
        **FIXED,
    )
    words = ["score", source, "--model", small_model, "--output", tmp_path / "command.csv", "--policy", "patience:1"]
    words += ["--device", "cpu", "--dtype", "float32", "--part-rows", 20]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()
    assert parts == [0, 1, 2, 3]
    assert (summary.output, summary.rows, summary.errors, summary.failed) == (str(tmp_path / "out.csv"), 60, 1, 0)
    assert sum(summary.exits.values()) == 59 and summary.layers == 6
    assert 1 < summary.mean_exit_layer < 6
    assert (summary.policy, summary.policy_reason, summary.guarantee) == ("patience:1", "asked for", None)
    assert 0 < summary.audited < 60 and summary.seconds > 0


def test_pairs_of_several_tables_go_into_parts_and_a_finished_job_is_not_done_again(
    small_model: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        rows = [{"q": "good film", "d": text} for text in ("bad", "a very long film", "good")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs, output = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], f"{tmp_path / 'parts'}/"
    options = {"text_column": "q", "text_pair_column": "d", "format": "jsonl", "prefix": "p_", **FIXED}
    summary = pf.score_table(inputs, output, str(small_model), pf.FullDepth(), **options)
    assert (summary.rows, summary.resumed, summary.exits) == (6, 0, {6: 6})
    written = [json.loads(line) for file in sorted((tmp_path / "parts").glob("part*.jsonl")) for line in file.open()]
    assert [row["d"] for row in written] == ["bad", "a very long film", "good"] * 2
    assert {"p_prediction", "p_score", "p_exit_layer", "p_error"} <= written[0].keys()
    assert pf.score_table(inputs, output, small_model, pf.FullDepth(), **options).resumed == 6


def test_where_the_stored_promise_is_void_tables_and_batches_warn_once_and_run_to_full_depth(
    small_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = Path(shutil.copytree(small_model, tmp_path / "tuned"))
    of_others = Conditions("0", "0", "float32", 48, 1)
    store_guarantee(tuned, pf.Guarantee(pf.Patience(1), Risk("disagreement"), 0.05, 0.05, 9, 0, 9, 0.5, of_others))
    summary = pf.score_table(put_rows(tmp_path / "in.jsonl", 5), tmp_path / "out.csv", tuned, **FIXED)
    assert (summary.policy, summary.guarantee, summary.exits) == ("full-depth", None, {6: 5})
    assert "void here" in summary.policy_reason
    assert [summary.policy_reason in record.message for record in caplog.records] == [True]
    caplog.clear()
    assert pf.BatchScorer(tuned, **FIXED)({"text": ["good film"]})["exit_layer"].tolist() == [6]
    assert [summary.policy_reason in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text_column": "review"}, "review"),
        ({"policy": "patiens:1"}, "patiens"),
        ({"engine": "dask"}, "engine='dask'"),
        ({"part_rows": 0}, "part_rows=0"),
        ({"quoting": "some"}, "quoting='some'"),
        ({"audit": 2.0}, "audit=2.0"),
    ],
)
def test_what_cannot_be_used_is_refused(small_model: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    source = put_rows(tmp_path / "in.jsonl", 3)
    with pytest.raises(pf.InputError, match=says):
        pf.score_table(source, tmp_path / "out.csv", small_model, **options)
    assert not (tmp_path / "out.csv").exists()
