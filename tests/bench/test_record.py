"""Records: what is written, what is refused, and the table that the README shows of them."""

import ast
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import gate, record
from bench.goals import GOALS

ROOT = Path(__file__).parents[2]
GREEN = '<testsuites><testsuite tests="5" failures="0" errors="0" skipped="2"/></testsuites>'
RED = '<testsuites><testsuite tests="5" failures="1" errors="0" skipped="0"/></testsuites>'
SST2 = {
    "utilisation": 0.5,
    "exit_efficiency": 0.961,
    "other_exits": {"skewed": {"exit_efficiency": 0.9}},
    "no_exit_cost": 0.021,
    "time_shares": {"together": 0.03},
    "full_depth_vs_stock": 1.5,
    "early_exit_vs_stock": 2.0,
}


def micro(op: str, size: str, variant: str, **figures: float) -> dict[str, Any]:
    return {"extra_info": {"variants": {variant: {"op": op, "size": size, **figures}}}}


MICRO = [
    micro("exit_step behind a pooler", "4096x768x2", "runtime", times_least=1.25),
    micro("gather", "128 tokens, 512 rows, 768 wide, 90% stay", "kernel", share_of_copy_bandwidth=0.9),
    micro("gather", "128 tokens, 512 rows, 768 wide, 50% stay", "kernel", share_of_copy_bandwidth=0.84),
    micro("gather", "128 tokens, 512 rows, 768 wide, 10% stay", "kernel", share_of_copy_bandwidth=0.1),
]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """What a run leaves whose BERT-large step ran out of time."""
    folder = tmp_path / "steps"
    folder.mkdir()
    (folder / "tests-kernels.xml").write_text(GREEN)
    (folder / "micro.json").write_text(json.dumps({"benchmarks": MICRO}))
    outputs = {"tests": "all is well", "ceilings": '{"copy_bandwidth": 4.0}', "micro": "a table",
               "bert-base-sst2": f"a table\n{json.dumps(SST2)}", "bert-large-sst2": "half a li"}  # fmt: skip
    for name, output in outputs.items():
        (folder / f"{name}.log").write_text(output)
        (folder / f"{name}.status").write_text("124 60" if name == "bert-large-sst2" else "0 5")
    return folder


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "machine", lambda: {"gpu": "NVIDIA H200"})


def write(steps: Path, output: Path, *options: str) -> dict[str, Any]:
    record.main(["write", str(steps), "--commit", "abc123", "--output", str(output), *options])
    [path] = output.glob("nvidia-h200/*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_record_holds_every_figure_beside_its_goal(
    steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = write(steps, tmp_path / "results")
    assert [path.name for path in (tmp_path / "results" / "nvidia-h200").iterdir()] == ["abc123.json"]
    assert (found["commit"], found["dirty"], found["mode"]) == ("abc123", False, "full")
    assert found["gate"] == {"passed": 3, "failed": 0, "skipped": 2}
    assert found["ceilings"] == {"copy_bandwidth": 4.0}
    shown = {line["figure"]: (line["shown"], line["met"]) for line in found["goals"]}
    assert len(shown) == len(GOALS)
    assert shown["exit efficiency, BERT-base, the exits of `bench/cases.py`"] == ("0.961", True)
    assert shown["no-exit cost (all heads and exit steps run, nobody leaves)"] == ("2.1%", False)
    assert shown["rows/s against stock transformers at its best batch, full depth"] == ("1.50x", True)
    assert shown["the same, early exit"] == ("2.00x", False)
    assert shown["`gather`, share of the measured copy bandwidth"] == ("84.0%", False)
    assert shown["`exit_step` behind its pooler, 4,096 rows, hidden 768, 2 classes, over its bound"] == ("1.25x", True)
    assert shown["exit efficiency, BERT-large, skewed exits"] == (record.NOT_YET, None)
    out = capsys.readouterr().out
    assert "bert-large-sst2: out of time after 60 s" in out
    assert found["steps"]["bert-large-sst2"] == {"status": 124, "seconds": 60, "figures": None}


@pytest.mark.parametrize("trouble", ["a failed test", "tests out of time", "no test ran", "no report"])
def test_without_a_green_gate_no_speed_is_recorded(steps: Path, tmp_path: Path, trouble: str) -> None:
    if trouble == "a failed test":
        (steps / "tests-runtime.xml").write_text(RED)
    elif trouble == "tests out of time":
        (steps / "tests.status").write_text("124 190")
    elif trouble == "no test ran":
        (steps / "tests-kernels.xml").write_text(GREEN.replace('tests="5"', 'tests="2"'))
    else:
        (steps / "tests-kernels.xml").unlink()
    with pytest.raises(SystemExit, match="no record: the correctness gate is not green"):
        write(steps, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_record_is_never_written_again_and_a_dirty_tree_s_has_another_name(steps: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    before = write(steps, results)
    with pytest.raises(SystemExit, match="records are never written again"):
        write(steps, results)
    assert json.loads((results / "nvidia-h200" / "abc123.json").read_text()) == before
    record.main(["write", str(steps), "--commit", "abc123", "--dirty", "--output", str(results)])
    assert json.loads((results / "nvidia-h200" / "abc123-dirty.json").read_text())["dirty"] is True


def test_the_table_shows_the_newest_record_of_each_gpu(steps: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    found = write(steps, results)
    newer = {**found, "commit": "def456789", "date": "2999-01-01T00:00:00+00:00"}
    dirty = {**newer, "commit": "fff", "dirty": True, "date": "2999-01-02T00:00:00+00:00"}
    for each in (newer, dirty):
        record.write(each, results)
    lines = record.table(results).splitlines()
    assert lines[0] == "| figure | goal | NVIDIA H200, def4567 |"
    assert "| the same, early exit | >= 2.3x | 2.00x (missed) |" in lines
    assert f"| exit efficiency, BERT-large, skewed exits | >= 0.95 | {record.NOT_YET} |" in lines


def test_the_readme_shows_the_table_of_the_records_that_are_here() -> None:
    readme = (ROOT / "bench" / "README.md").read_text()
    assert record.table() in readme, "paste what `python -m bench.record table` prints into bench/README.md"


def test_every_gpu_test_is_in_one_part_of_the_gate() -> None:
    words = ("float32", "float16", "bert", "albert", "roberta")
    for path in (gate.KERNELS, gate.RUNTIME):
        choices = [shard[2] for shard in gate.SHARDS.values() if shard[0] == path]
        for held in itertools.product((False, True), repeat=len(words)):
            names = dict(zip(words, held, strict=True))
            chosen = [choice for choice in choices if eval(compile(ast.parse(choice, mode="eval"), "", "eval"), names)]
            assert len(chosen) == 1, (names, chosen)
    with_mark = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in p.read_text()]
    others = {p.relative_to(ROOT).as_posix() for p in with_mark} - {
        gate.KERNELS,
        gate.RUNTIME,
        "tests/bench/test_record.py",
    }
    assert not others, "bench/gate.py does not run them"


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
assert pytest.main([*arguments, "-m", "gpu", {gate.KERNELS!r}, {gate.RUNTIME!r}]) == 0
assert pytest.main([*arguments, "bench/micro"]) == 0
import bench.endtoend, bench.record, bench.gate
""")
    assert "test_every_policy_gives_the_cpus_exits" in out


STUB = """#!{python}
import os, sys
from pathlib import Path
command = " ".join(sys.argv[1:])
if "bench.record" in command:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if "bench.gate" in command:
    Path(sys.argv[3], "tests-runtime.xml").write_text({green!r})
elif "bench.endtoend" in command:
    assert "--model bert-tiny" in command
    if "--lengths 128" in command:
        sys.exit(124)
    print('{{"exit_efficiency": 0.97}}')
elif "bench.ceilings" in command:
    print('{{"copy_bandwidth": 1.0}}')
print("pythonpath", os.environ["PYTHONPATH"], file=sys.stderr)
"""


def test_a_step_that_hangs_leaves_the_others_in_the_record(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, green=GREEN))
    stub.chmod(0o755)
    command = ["bash", "bench/gpu.sh", "--rehearse", "--python", str(stub), "--commit", "abc",
               "--output", str(tmp_path / "results")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tmp_path / "results").rglob("*.json")
    found = json.loads(path.read_text())
    ends = {name: (step["status"], step["figures"] is not None) for name, step in found["steps"].items()}
    assert ends.pop("bert-base-128") == (124, False)
    assert ends["bert-base-sst2"] == (0, True)
    assert "bert-base-128: out of time" in done.stdout
    assert not (ROOT / "bench" / "results" / "cpu").exists()
