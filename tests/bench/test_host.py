"""The host's time without a GPU: every kernel that a layer launches is in the table, and the gate is held."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")

from bench import host
from pabee_fast.kernels import prepared

KERNELS = {"short_attention", "add_norm", "bias_act", "pool", "exit_step", "plan", "gather"}


def test_every_kernel_of_a_layer_is_timed_prepared_and_by_triton_s_own_call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "CALLS", 2)
    assert host.main(["--rounds", "2"]) == 0
    *printed, document = capsys.readouterr().out.splitlines()
    figures = json.loads(document)
    assert figures["microseconds"].keys() > KERNELS
    assert figures["microseconds"].keys() - figures["microseconds_checked_and_by_triton"].keys() == {
        "transformers' layer"
    }
    assert any("takes" in line and "of transformers' layer" in line for line in printed)
    assert not prepared._prepared, "nothing of the GPU that is not there stays"
    assert float(torch.full((64,), 1e-40).mul(1.0).max()) > 0, "what is smaller than normal is a number again"


@pytest.mark.parametrize(("ratio", "status"), [(0.99, 0), (1.01, 1)])
def test_a_layer_that_takes_longer_than_allowed_fails(
    ratio: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {
        "hardware": "none", "torch": "", "triton": "", "transformers": "", "python": "", "ratio": ratio,
        "has_launcher": False,
        "microseconds": {"layer": 1.0}, "microseconds_checked_and_by_triton": {},
    }  # fmt: skip
    monkeypatch.setattr(host, "measure", lambda rounds, has_launcher: figures)
    assert host.main(["--at-most", "1.0"]) == status
    assert host.main([]) == 0
