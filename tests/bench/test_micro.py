"""The microbenchmarks' cases: every kernel has some, and nothing that is wrong is timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.micro import compact, exit_step, table
from bench.micro.subject import Case, same
from pabee_fast.kernels.launch import Plan

CPU = torch.device("cpu")
SMALL = [case for case in table.CASES if case.is_small and case.rows <= 64]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_variants_of_a_case_agree(case: Case) -> None:
    subject = case.build(CPU, torch.float32)
    subject.agree()
    assert {"reference"} < subject.calls.keys()
    assert subject.moved > 0
    for call in subject.calls.values():
        call()


def test_every_kernel_has_cases() -> None:
    kernels = pytest.importorskip("pabee_fast.kernels.table", reason="Triton is not installed", exc_type=ImportError)
    for name in kernels.FUNCTIONS:
        assert any(case.op.split()[0].rstrip(",") == name for case in SMALL), name


def test_names_tell_cases_apart() -> None:
    assert len({case.name for case in table.CASES}) == len(table.CASES)


def test_a_variant_that_keeps_a_wrong_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = compact.plan_in_plain_torch

    def wrong(keep: torch.Tensor, *args: torch.Tensor) -> Plan:
        return real(keep.flip(0), *args)

    monkeypatch.setattr(compact, "plan_in_plain_torch", wrong)
    with pytest.raises(AssertionError, match=r"torch, result . differs from the reference"):
        compact.build_plan(64, 0.5, CPU).agree()


def test_a_variant_whose_rows_leave_a_layer_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = exit_step.in_plain_torch
    monkeypatch.setattr(
        exit_step,
        "in_plain_torch",
        lambda rows, head, rule, pooler: real(rows, head, rule._replace(patience=rule.patience + 1), pooler),
    )
    with pytest.raises(AssertionError, match="torch, result 0"):
        exit_step.build(64, 48, 2, False, CPU, torch.float32).agree()


def test_floats_may_differ_by_a_share_of_the_largest_and_integers_not_at_all() -> None:
    one, near = torch.tensor([1.0, 100.0]), torch.tensor([1.5, 100.0])
    same({"reference": (one,), "near": (near,)}, tolerance=0.01)
    with pytest.raises(AssertionError, match=r"near, result 0 .* by up to 5.00e-01"):
        same({"reference": (one,), "near": (near,)}, tolerance=0.001)
    with pytest.raises(AssertionError, match="off, result 0"):
        same({"reference": (torch.tensor([1]),), "off": (torch.tensor([2]),)}, tolerance=1.0)


def test_a_run_writes_every_variant_s_figures(tmp_path: Path) -> None:
    report = tmp_path / "micro.json"
    command = [sys.executable, "-m", "pytest", "-q", "bench/micro", "-k", "plan and 64", "--micro-rounds", "2",
               "--micro-device", "cpu", "--micro-dtype", "float32", f"--benchmark-json={report}",
               "-p", "no:cacheprovider"]  # fmt: skip
    # A worker of xdist says so in its variables, and pytest-benchmark then measures nothing.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    figures = benchmark["extra_info"]["variants"]["torch"]
    assert {"hardware", "dtype", "bytes", "share_of_copy_bandwidth", "times_least"} <= figures.keys()
    assert figures["microseconds"]["p20"] <= figures["microseconds"]["median"] <= figures["microseconds"]["p80"]
    reference = benchmark["extra_info"]["variants"]["reference"]["microseconds"]["median"]
    assert benchmark["stats"]["median"] == pytest.approx(reference / 1e6), "pytest-benchmark holds the same samples"
