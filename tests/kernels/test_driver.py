import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own")
def test_launches_with_addresses_reach_the_driver_as_triton_s_own_do() -> None:
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", HERE / "driven.py"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
