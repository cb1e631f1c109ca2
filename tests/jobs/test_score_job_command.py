"""`pabee-fast score` as it is left alone over night: stopped, resumed, watched, in a pipe, audited."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import pabee_fast as pf
from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.risks import Risk
from pabee_fast.calibration.scorer import Scorer, open_scorer
from pabee_fast.cli import app
from pabee_fast.cli.watch import Bar, JsonLines, Watch, choose_watch
from pabee_fast.errors import InputError
from pabee_fast.jobs.job import Progress
from pabee_fast.jobs.manifest import Manifest
from pabee_fast.scoring.tally import Tally
from tests.calibration.traces import CONDITIONS
from tests.conftest import ROOT
from tests.jobs.conftest import put_rows, text_of

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def score(*arguments: object, policy: str = "patience:1", **options: Any) -> Result:
    fixed = ["--device", "cpu", "--dtype", "float32", "--policy", policy]
    return CliRunner().invoke(app, ["score", *map(str, arguments), *fixed], **options)


CTRL_C = """
import os, signal, sys
from pabee_fast.cli import main
from pabee_fast.calibration.guarantee import Guarantee
from pabee_fast.calibration.risks import Risk
from pabee_fast.jobs import manifest
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
appends = []
def reached(point):
    appends.append(point)
    if len(appends) == 8:  # the job's own, the table's name, and two of each of three parts
        os.kill(os.getpid(), signal.{name})
manifest.reached = reached
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_ends_cleanly_says_how_to_go_on_and_the_same_command_does(
    name: str, small_model: Path, tmp_path: Path
) -> None:
    source, target = put_rows(tmp_path / "in.jsonl", 200), tmp_path / "out.parquet"
    fixed = ["--device", "cpu", "--dtype", "float32", "--policy", "patience:1", "--part-rows", "20"]
    words = ["score", source, "--model", small_model, "--output", target, *fixed]
    command = [sys.executable, "-c", CTRL_C.replace("{name}", name), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stdout + done.stderr
    assert re.search(r"stopped: [46]0 of 200 rows are done; the same command goes on from there", done.stderr)
    assert "Traceback" not in done.stderr
    parts = tmp_path / "out.parquet.parts"
    assert not target.exists()
    assert [path for path in parts.iterdir() if path.name.endswith(".tmp")] == []
    with Manifest(parts) as manifest:
        assert sum(part.rows for part in manifest.parts.values()) == 60
    result = score(*words[1:6], *fixed[-2:])
    assert result.exit_code == 0, result.output
    assert "60 rows were done before; what follows counts all 200" in result.output
    assert pq.read_table(target).column("id").to_pylist() == list(range(200))


def test_the_summary_is_that_of_the_whole_job_and_tells_where_the_time_went(small_model: Path, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 40, row3=None)
    result = score(source, "--model", small_model, "--output", tmp_path / "out.csv", "--part-rows", "7")
    assert result.exit_code == 0, result.output
    for words in ("40 rows in", "compute", "wait", "read", "tokenise", "write", "1 rows could not be scored",
                  f"wrote {tmp_path / 'out.csv'}", "policy patience:1: asked for"):  # fmt: skip
        assert words in result.output
    assert "retry" not in result.output


def test_several_inputs_a_glob_and_a_directory_of_parts(small_model: Path, tmp_path: Path) -> None:
    put_rows(tmp_path / "a.jsonl", 5), put_rows(tmp_path / "b.jsonl", 5, first=5)
    options = ["--model", small_model, "--part-rows", "3", "--format", "jsonl"]
    for inputs, name in (([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "one"), ([tmp_path / "*.jsonl"], "two")):
        result = score(*inputs, "--output", f"{tmp_path / name}/", *options)
        assert result.exit_code == 0, result.output
        parts = sorted((tmp_path / name).glob("part-*.jsonl"))
        ids = [json.loads(line)["id"] for part in parts for line in part.read_text().splitlines()]
        assert ids == list(range(10)) and len(parts) == 4


def test_json_logs_are_one_document_a_line_and_end_with_the_summary(small_model: Path, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 30)
    words = ("--model", small_model, "--output", tmp_path / "out.csv", "--part-rows", "10", "--log-format", "json")
    result = score(source, *words)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events] == ["begin", "part", "part", "part", "end"]
    assert [event["rows"] for event in events] == [0, 10, 20, 30, 30]
    assert events[2]["total"] == 30 and events[2]["seconds_left"] is not None
    assert not any(event.get("total_estimated") for event in events)
    assert events[-1]["settings"]["policy"] == "patience:1" and set(events[-1]["exits"]) <= set("123456")
    assert "wait" in events[-1]["spent"]


def test_standard_input_goes_to_standard_output_line_by_line(small_model: Path) -> None:
    lines = [f'{{"id": {row},  "text": {json.dumps(text_of(row))}}}' for row in range(30)]
    lines[4:6] = ['{"text": null}', "not json"]
    result = score("-", "--model", small_model, "--output", "-", "--all-scores", input="\n".join(lines) + "\n\n")
    assert result.exit_code == 0, result.output
    written = result.stdout.splitlines()
    assert len(written) == 30
    assert all(out.startswith(line[:-1]) for line, out in zip(lines[:4], written[:4], strict=True))
    rows = [json.loads(line) for line in written]
    assert [row["error"] is None for row in rows] == [True] * 4 + [False] * 2 + [True] * 24
    assert rows[4]["text"] is None and "text" not in rows[5] and "line 6" in rows[5]["error"]
    model = pf.from_pretrained(small_model)
    from transformers import AutoTokenizer

    scorer = pf.Scorer(model, AutoTokenizer.from_pretrained(small_model), policy=pf.Patience(1))
    wanted = list(scorer.score([row.get("text") for row in rows]))
    assert [row["prediction"] for row in rows] == [one.prediction for one in wanted]
    assert "30 rows, 2 with errors" in result.stderr


def test_a_pipe_answers_before_its_input_ends(small_model: Path) -> None:
    fixed = ["--device", "cpu", "--dtype", "float32", "--policy", "patience:1"]
    words = ["score", "-", "--model", str(small_model), "--output", "-", *fixed]
    command = [sys.executable, "-m", "pabee_fast", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=QUIET, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as job:
        assert job.stdin is not None and job.stdout is not None
        for row in range(3):
            job.stdin.write(f'{{"text": {json.dumps(text_of(row))}}}\n')
            job.stdin.flush()
            assert json.loads(job.stdout.readline())["text"] == text_of(row)
        out, err = job.communicate(timeout=60)
        assert job.returncode == 0 and not out and "3 rows" in err


@pytest.mark.parametrize(
    ("arguments", "text", "says"),
    [
        (["-", "--output", "out.csv"], "", "standard input goes to standard output"),
        (["in.csv", "--output", "-"], "", "standard input goes to standard output"),
        (["-", "--output", "-"], '{"text": "a", "score": 1}\n', "--prefix"),
        (["-", "--output", "-", "--overwrite", "--part-rows", 3], "", "--part-rows, --overwrite: standard input"),
        (["-", "--output", "-", "--log-format", "json"], "", "--log-format json: standard input"),
        (["", "--output", "out.csv"], "", "an input is empty"),
        (["in.csv", "--output", ""], "", "output is empty"),
    ],
)
def test_pipes_that_cannot_be_are_refused(arguments: list[str], text: str, says: str, small_model: Path) -> None:
    result = score(*arguments, "--model", small_model, input=text)
    assert isinstance(result.exception, InputError) and says in str(result.exception)


def test_the_audit_says_what_it_saw_and_cost_and_warns_where_it_contradicts_the_guarantee(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_rows(tmp_path / "in.jsonl", 600)
    words = ("--model", small_model, "--audit", "0.5")
    plain = score(source, *words, "--output", tmp_path / "plain.csv")
    assert "disagree with full depth" in plain.output and "95% interval" in plain.output
    assert "on top of computing" in plain.output and "guarantee" not in plain.output
    for epsilon, contradicted in ((0.001, True), (0.999, False)):

        def guaranteed(*words: Any, epsilon: float = epsilon, **options: Any) -> Scorer:
            scorer = open_scorer(*words, **options)
            of = Guarantee(scorer.policy, Risk("disagreement"), epsilon, 0.05, 1, 0, 1, 0.5, CONDITIONS)
            scorer.choose(scorer.policy, "asked for", of)
            return scorer

        monkeypatch.setattr("pabee_fast.jobs.recipe.open_scorer", guaranteed)
        found = score(source, *words, "--output", tmp_path / f"{epsilon}.csv")
        assert ("WARNING: the guarantee stored with the model says at most 0.100%" in found.output) == contradicted
        assert ("does not contradict the guarantee" in found.output) != contradicted
        assert (tmp_path / f"{epsilon}.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_json_logs_of_a_csv_estimate_its_rows(small_model: Path, tmp_path: Path) -> None:
    (source := tmp_path / "in.csv").write_text("text\n" + "a good film\n" * 40)
    words = ("--model", small_model, "--output", tmp_path / "out.csv", "--part-rows", "10", "--log-format", "json")
    result = score(source, *words)
    assert result.exit_code == 0, result.output
    begun, *parts, _ = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert begun["total"] is None and not begun["total_estimated"]
    assert [abs(part["total"] - 40) <= 2 for part in parts] == [True] * 4
    assert parts[-1]["total"] == 40 and not parts[-1]["total_estimated"] and parts[-1]["seconds_left"] == 0


def test_a_bar_is_for_terminals_only_and_shows_rows_mean_exit_layer_and_time_left() -> None:
    from rich.console import Console

    assert type(choose_watch("text")) is Watch
    assert isinstance(choose_watch("json"), JsonLines)
    with pytest.raises(InputError, match="text or json"):
        choose_watch("xml")
    console = Console(force_terminal=True, width=160, record=True, file=io.StringIO())
    tally = Tally(rows=40)
    tally.exits.update({2: 20, 4: 20})
    with Bar(console) as bar:
        bar.on_part(Progress(tally, total=100, parts=1))
        bar.on_rows(20, 120)
        bar._bar.refresh()
    shown = console.export_text()
    with Bar(console) as bar:
        bar.on_part(Progress(tally, total=100, parts=1, total_estimated=True))
        bar._bar.refresh()
    assert "40/~100 rows" in console.export_text()
    assert "60/100 rows" in shown and "mean exit layer 4.00" in shown and "rows/s" in shown


def test_a_pipe_is_audited_and_stops_at_too_many_errors(small_model: Path) -> None:
    lines = "".join(f'{{"text": {json.dumps(text_of(row))}}}\n' for row in range(40))
    result = score("-", "--model", small_model, "--output", "-", "--audit", "1", input=lines)
    assert "rows disagree with full depth" in result.stderr and "of 40 rows" in result.stderr
    words = ("-", "--model", small_model, "--output", "-", "--max-errors", 1)
    result = score(*words, input='{"text": 1}\n{"text": 2}\n' + lines)
    assert isinstance(result.exception, pf.PabeeFastError)
    assert "2 of 42 rows have errors, more than max_errors=1" in str(result.exception)
    assert score(*words, input='{"text": 1}\n' + lines).exit_code == 0


def test_a_mark_of_byte_order_in_front_of_a_pipe_is_no_part_of_its_first_line(small_model: Path) -> None:
    result = score("-", "--model", small_model, "--output", "-", input=b'\xef\xbb\xbf{"text": "good film"}\n')
    assert json.loads(result.stdout)["error"] is None


def test_ctrl_c_ends_a_pipe_that_waits(small_model: Path) -> None:
    fixed = ["--device", "cpu", "--dtype", "float32", "--policy", "patience:1"]
    command = [sys.executable, "-m", "pabee_fast", "score", "-", "--model", str(small_model), "--output", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, *fixed], cwd=ROOT, env=QUIET, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as job:
        assert job.stdin is not None and job.stdout is not None
        job.stdin.write('{"text": "good film"}\n')
        job.stdin.flush()
        assert json.loads(job.stdout.readline())["text"] == "good film"
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 130
        assert job.stderr is not None
        said = job.stderr.read()
    assert said.endswith("pabee-fast: stopped\n") and "Fatal" not in said
