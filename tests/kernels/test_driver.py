import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch brings a CUDA of its own")
def test_launches_with_addresses_reach_the_driver_as_triton_s_own_do(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed, as on macOS and Windows")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    driver = tmp_path / "libcuda.so.1"
    subprocess.run([*compiler, "-shared", "-fPIC", HERE / "driver.c", "-o", driver], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", HERE / "driven.py"],
        cwd=HERE.parents[1],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "TRITON_LIBCUDA_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
