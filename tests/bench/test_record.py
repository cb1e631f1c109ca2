"""Records: what is written, what is refused, and the table that the README shows of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.goals import GOALS

ROOT = Path(__file__).parents[2]
GPU_TESTS = ("tests/kernels/test_gpu.py", "tests/runtime/test_cuda.py")
"""What bench/gpu.sh runs."""


def told(test: str, outcome: str, **more: Any) -> str:
    return json.dumps({"test": test, "outcome": outcome, **more}) + "\n"


SST2 = {
    "rows_per_second": {"full depth": 121_000.0},
    "utilisation": 0.5,
    "exit_efficiency": 0.961,
    "other_exits": {"skewed": {"exit_efficiency": 0.9}},
    "no_exit_cost": 0.021,
    "time_shares": {"together": 0.03},
    "full_depth_vs_stock": 1.5,
    "early_exit_vs_stock": 2.0,
}


def micro(op: str, size: str, variant: str, **figures: float) -> str:
    return told(f"test_micro[{op}]", "passed", variants={variant: {"op": op, "size": size, **figures}})


MICRO = [
    micro("exit_step behind a pooler", "4096x768x2", "runtime", times_least=1.25),
    micro("gather", "128 tokens, 512 rows, 768 wide, 90% stay", "kernel", share_of_copy_bandwidth=0.9),
    micro("gather", "128 tokens, 512 rows, 768 wide, 50% stay", "kernel", share_of_copy_bandwidth=0.84),
    micro("gather", "128 tokens, 512 rows, 768 wide, 10% stay", "kernel", share_of_copy_bandwidth=0.1),
]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """What a run leaves whose BERT-large step ran out of time, as did the microbenchmarks' and the job's."""
    folder = tmp_path / "steps"
    folder.mkdir()
    (folder / "tests-first.kept").write_text(told("a", "passed"))
    (folder / "tests.kept").write_text(told("a", "passed") + told("b", "passed") + told("c", "skipped"))
    (folder / "micro.kept").write_text("".join(MICRO) + '{"test": "half a li')
    large = [{"exit_efficiency": 0.9, "partial": True}, {"exit_efficiency": 0.97, "partial": True}]
    outputs = {"machine": '{"gpu": "NVIDIA H200"}', "tests": "all is well", "ceilings": '{"copy_bandwidth": 4.0}',
               "micro": "", "bert-base-sst2": f"a table\n{json.dumps(SST2)}", "whole-job": "nothing yet",
               "bert-large-sst2": "\n".join([*map(json.dumps, large), '{"exit_effic'])}  # fmt: skip
    late = {"bert-large-sst2": "124 60", "micro": "124 100", "whole-job": "124 0"}
    for name, output in outputs.items():
        (folder / f"{name}.log").write_text(output)
        (folder / f"{name}.status").write_text(late.get(name, "0 5"))
    return folder


def write(steps: Path, output: Path, *options: str, status: int = 0) -> dict[str, Any]:
    assert record.main(["write", str(steps), "--commit", "abc123", "--output", str(output), *options]) == status
    [path] = output.glob("nvidia-h200/*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_record_holds_every_figure_beside_its_goal(
    steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = write(steps, tmp_path / "results")
    assert [path.name for path in (tmp_path / "results" / "nvidia-h200").iterdir()] == ["abc123.json"]
    assert (found["commit"], found["dirty"], found["mode"]) == ("abc123", False, "full")
    assert found["machine"] == {"gpu": "NVIDIA H200"}
    assert found["gate"] == {"passed": 2, "failed": 0, "skipped": 1, "failures": [], "complete": True}
    assert found["ceilings"] == {"copy_bandwidth": 4.0}
    shown = {line["figure"]: (line["shown"], line["met"]) for line in found["goals"]}
    assert len(shown) == len(GOALS)
    assert shown["exit efficiency, BERT-base, the exits of `bench/cases.py`"] == ("0.961", True)
    assert shown["no-exit cost (all heads and exit steps run, nobody leaves)"] == ("2.1%", False)
    assert shown["full depth, BERT-base, sst2's lengths (mean about 25 tokens, unpadded)"] == ("121,000 rows/s", True)
    assert shown["rows/s against stock transformers at its best batch, full depth"] == ("1.50x", True)
    assert shown["the same, early exit"] == ("2.00x", False)
    assert shown["the slowest call of the drop-in against stock's, early exit"] == (record.NOT_YET, None)
    assert capsys.readouterr().out.splitlines()[-1].startswith("record: ")


def test_a_step_that_was_cut_short_gives_the_figures_it_had_and_says_so(
    steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = write(steps, tmp_path / "results")
    large = {"status": 124, "seconds": 60, "partial": True, "figures": {"exit_efficiency": 0.97}}
    assert found["steps"]["bert-large-sst2"] == large
    assert found["steps"]["whole-job"] == {"status": 124, "seconds": 0, "partial": False, "figures": None}
    shown = {line["figure"]: (line["shown"], line["met"]) for line in found["goals"]}
    assert shown["exit efficiency, BERT-large, the exits of `bench/cases.py`"] == ("0.970 (partial)", True)
    assert shown["exit efficiency, BERT-large, skewed exits"] == (record.NOT_YET, None)
    assert shown["`gather`, share of the measured copy bandwidth"] == ("84.0% (partial)", False)
    pooled = "`exit_step` behind its pooler, 4,096 rows, hidden 768, 2 classes, over its bound"
    assert shown[pooled] == ("1.25x (partial)", True)
    out = capsys.readouterr().out
    assert "bert-large-sst2: out of time after 60 s, its figures so far are in the record" in out
    assert "whole-job: not begun, since no time was left" in out


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("a failed test", "1 of 3 GPU tests fail"),
        ("tests out of time", "only 2 GPU tests ran"),
        ("no test ran", "no GPU test ran"),
        ("never begun", "no GPU test ran"),
    ],
)
def test_gpu_tests_that_fail_or_did_not_run_stand_beside_the_figures_which_are_kept(
    steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: str, words: str
) -> None:
    if trouble == "a failed test":
        with (steps / "tests.kept").open("a") as file:
            file.write(told("d", "failed", message="3 is not 4"))
    elif trouble == "tests out of time":
        (steps / "tests.status").write_text("124 100")
    else:
        for path in steps.glob("tests*"):
            path.unlink()
        if trouble == "no test ran":
            (steps / "tests.kept").write_text(told("a", "skipped"))
            (steps / "tests.status").write_text("0 1")
    found = write(steps, tmp_path / "results", status=1)
    assert found["steps"]["bert-base-sst2"]["figures"] == SST2
    failures = [{"test": "d", "message": "3 is not 4"}] if trouble == "a failed test" else []
    assert found["gate"]["failures"] == failures
    assert f"beside these figures: {words}" in capsys.readouterr().out
    assert record.table(tmp_path / "results").splitlines()[0].endswith(f"| NVIDIA H200, abc123 ({words}) |")


def test_a_test_that_fails_once_has_failed_though_it_passed_elsewhere(steps: Path) -> None:
    (steps / "tests-first.kept").write_text(told("b", "failed", message="no"))
    gate = record.read_gate(steps, {"tests": {"status": 0}})
    assert (gate["passed"], gate["failed"]) == (1, 1)


def test_a_record_is_never_written_again_and_a_dirty_tree_s_has_another_name(steps: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    before = write(steps, results)
    for options in ([], [], ["--dirty"]):
        assert record.main(["write", str(steps), "--commit", "abc123", "--output", str(results), *options]) == 0
    names = ["abc123-2.json", "abc123-3.json", "abc123-dirty.json", "abc123.json"]
    assert sorted(path.name for path in (results / "nvidia-h200").iterdir()) == names
    assert json.loads((results / "nvidia-h200" / "abc123.json").read_text()) == before
    assert json.loads((results / "nvidia-h200" / "abc123-dirty.json").read_text())["dirty"] is True


def test_the_table_shows_the_newest_record_of_each_gpu(steps: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    found = write(steps, results)
    newer = {**found, "commit": "def456789", "date": "2999-01-01T00:00:00+00:00"}
    dirty = {**newer, "commit": "fff", "dirty": True, "date": "2999-01-02T00:00:00+00:00"}
    quick = {**newer, "commit": "eee", "mode": "quick", "date": "2999-01-03T00:00:00+00:00"}
    for each in (newer, dirty, quick):
        record.write(each, results)
    lines = record.table(results).splitlines()
    assert lines[0] == "| figure | goal | NVIDIA H200, def4567 |"
    lacking = {**newer, "commit": "fed987654", "date": "2999-01-04T00:00:00+00:00",
               "goals": [line for line in newer["goals"] if line["figure"] != "the same, early exit"]}  # fmt: skip
    record.write(lacking, tmp_path / "more")
    record.write(newer, tmp_path / "more")
    assert "| the same, early exit | >= 2.3x | 2.00x, at def4567 (missed) |" in record.table(tmp_path / "more")
    assert "| the same, early exit | >= 2.3x | 2.00x (missed) |" in lines
    assert f"| exit efficiency, BERT-large, skewed exits | >= 0.95 | {record.NOT_YET} |" in lines


def test_a_run_without_the_measured_kernels_says_so_and_has_a_column_of_its_own(steps: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    found = write(steps, results)
    (steps / "bert-base-sst2.log").write_text(json.dumps(SST2 | {"kernels_by_measure": False}))
    untuned = record.compose(steps, "def456789", False, "full")
    assert (found["mode"], untuned["mode"]) == ("full", "untuned")
    record.write({**untuned, "date": "2999-01-01T00:00:00+00:00"}, results)
    head, _, *lines = record.table(results).splitlines()
    assert head == "| figure | goal | NVIDIA H200, abc123 | NVIDIA H200, def4567, libraries' attention and GELU |"
    assert "| the same, early exit | >= 2.3x | 2.00x (missed) | 2.00x (missed) |" in lines
    newest = {**found, "commit": "fed987654", "date": "2999-01-02T00:00:00+00:00"}
    record.write(newest, results)
    assert record.table(results).splitlines()[0] == "| figure | goal | NVIDIA H200, fed9876 |"


def test_the_readme_shows_the_table_of_the_records_that_are_here() -> None:
    readme = (ROOT / "bench" / "README.md").read_text()
    assert record.table() in readme, "paste what `python -m bench.record table` prints into bench/README.md"


def test_every_gpu_test_is_run_by_the_script() -> None:
    with_mark = {p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in p.read_text()}
    assert {p.relative_to(ROOT).as_posix() for p in with_mark} - {"tests/bench/test_record.py"} == set(GPU_TESTS)
    assert " ".join(GPU_TESTS) in (ROOT / "bench" / "gpu.sh").read_text()


def test_gpu_tests_and_benchmarks_are_collected_without_what_a_gpu_machine_lacks(
    run_python: Callable[[str], str],
) -> None:
    out = run_python(f"""
from functools import partial
from importlib.machinery import PathFinder
absent, real = ("hypothesis", "pyarrow", "typer", "rich", "scipy", "accelerate", "ray"), PathFinder.find_spec
def find(name, *given):
    return None if name.split(".")[0] in absent else real(name, *given)
PathFinder.find_spec = partial(find)  # pytest keeps it in a class, where a function would become a method
import pytest
arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
assert pytest.main([*arguments, "-m", "gpu", *{GPU_TESTS!r}]) == 0
assert pytest.main([*arguments, "bench/micro"]) == 0
import bench.endtoend, bench.record, bench.dropin, bench.tune
""")
    assert "test_every_policy_gives_the_cpus_exits" in out
