"""bench/gpu.sh with a stand-in for Python: whatever ends it, the figures it had are in a record."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

STUB = """#!{python}
import os, sys, time
from pathlib import Path
command = " ".join(sys.argv[1:])
if sys.argv[1] == "-c":
    sys.exit()
if "bench.record write" in command:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
assert os.environ["PYTHONPATH"] == os.getcwd() != {root!r} and Path("kernels/reference.py").exists()
if "bench.record machine" in command:
    print('{{"gpu": "Made Up"}}')
elif "--kept" in command:
    outcome = "failed" if "{trouble}" == "a test fails" else "passed"
    Path(sys.argv[sys.argv.index("--kept") + 1]).write_text(
        '{{"test": "t", "outcome": "%s", "message": "why"}}\\n' % outcome
    )
elif "bench.endtoend" in command:
    print("a table", flush=True)
    print('{{"exit_efficiency": 0.97, "partial": true}}', flush=True)
    if "--lengths 128" in command:
        sys.exit(3)
    time.sleep(60 if "{trouble}" in ("a signal", "no time") else 0)
    print('{{"exit_efficiency": 0.98}}')
elif "bench.ceilings" in command:
    print('{{"copy_bandwidth": 1.0}}')
"""


def script(tmp_path: Path, trouble: str, *options: str) -> tuple[list[str], dict[str, str]]:
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, root=str(ROOT), trouble=trouble))
    stub.chmod(0o755)
    command = ["bash", "bench/gpu.sh", "--python", str(stub), "--commit", "abc", "--output", str(tmp_path / "results")]
    return [*command, *options], os.environ | {"PYTHONPATH": str(ROOT)}


def run(tmp_path: Path, trouble: str, *options: str) -> tuple[int, str, dict[str, Any]]:
    command, environment = script(tmp_path, trouble, *options)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, the_record(tmp_path)


def the_record(tmp_path: Path) -> dict[str, Any]:
    [path] = (tmp_path / "results" / "made-up").iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_python_that_lacks_something_is_refused_before_anything_runs(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    where = os.path.relpath(bare, ROOT)
    command = ["bash", "bench/gpu.sh", "--rehearse", "--python", where, "--steps", str(tmp_path / "steps")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lacks torch, triton" in done.stderr and "--python" in done.stderr
    assert not (tmp_path / "steps").exists()


def test_a_step_that_fails_leaves_its_figures_so_far_and_the_others(tmp_path: Path) -> None:
    status, out, found = run(tmp_path, "none", "--rehearse")
    assert status == 0, out
    ends = {name: (step["status"], step["partial"], step["figures"]) for name, step in found["steps"].items()}
    assert ends["bert-base-128"] == (3, True, {"exit_efficiency": 0.97})
    assert ends["bert-base-sst2"] == (0, False, {"exit_efficiency": 0.98})
    assert "bert-base-128: exit status 3 after" in out
    assert not (ROOT / "bench" / "results" / "made-up").exists()


@pytest.mark.parametrize("mode", ["full", "quick", "tune"])
def test_a_gpu_test_that_fails_is_in_the_record_and_in_the_exit_status(tmp_path: Path, mode: str) -> None:
    status, out, found = run(tmp_path, "a test fails", *([] if mode == "full" else [f"--{mode}"]))
    assert (status, found["mode"]) == (1, mode)
    assert found["gate"]["failures"] == [{"test": "t", "message": "why"}]
    assert "1 of 1 GPU tests fail" in out


def test_the_most_wanted_is_measured_first_and_all_tests_come_last(tmp_path: Path) -> None:
    status, out, found = run(tmp_path, "none")
    assert status == 0, out
    names = list(found["steps"])
    assert names[:5] == ["tests-first", "ceilings", "attention", "bert-base-sst2", "dropin"] and names[-1] == "tests"


def test_what_no_time_is_left_for_is_left_out_and_the_record_is_written(tmp_path: Path) -> None:
    status, out, found = run(tmp_path, "no time", "--rehearse", "--seconds", "8")
    ends = {name: step["status"] for name, step in found["steps"].items()}
    assert status == 0 and set(ends.values()) == {0, 124}, out
    assert found["steps"]["bert-base-sst2"]["figures"] == {"exit_efficiency": 0.97}
    assert found["steps"]["micro"]["seconds"] == 0
    assert "micro: not begun, since no time was left" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_told_to_stop_writes_its_record_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    command, environment = script(tmp_path, "a signal", "--rehearse", "--steps", str(tmp_path / "steps"))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=functools.partial(signal.signal, number, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )
    log = tmp_path / "steps" / "bert-base-sst2.log"
    while not (log.exists() and "0.97" in log.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    out = process.communicate(timeout=30)[0].decode()  # its end of the pipe is closed only by the last process
    assert process.returncode == 128 + number, out
    step = the_record(tmp_path)["steps"]["bert-base-sst2"]
    assert (step["status"], step["figures"]) == (143, {"exit_efficiency": 0.97})
