"""A GPU that is not there: Triton compiles for it and launches on it, and a launch is written down instead of made.

Pointers are those of tensors on the CPU, which no kernel touches.
"""

import atexit
import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime import driver

from pabee_fast.kernels import prepared, table

Arguments = tuple[Any, ...]
"""Of a launcher: grid (three numbers), stream, function, metadata, launch metadata, two hooks; then the kernel's."""


HERE = -1
"""The device, as tensors on a CPU say."""


class StubDriver:
    """Takes the place of Triton's driver for an sm_90.

    Args:
        is_recording: whether what launchers are called with is kept in `launches`.
    """

    def __init__(self, is_recording: bool = False) -> None:
        self.launches: list[Arguments] = []
        self.device = HERE
        properties = {"max_shared_mem": 232_448, "multiprocessor_count": 132}
        self.utils = SimpleNamespace(
            load_binary=lambda name, *args: (object(), object(), 32, 0, 1024),
            get_device_properties=lambda device: properties,
        )
        self.launcher_cls = lambda src, metadata: self._write_down if is_recording else _do_nothing

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def _write_down(self, *args: Any) -> None:
        self.launches.append(args)


def _do_nothing(*args: Any) -> None:
    pass


class LauncherDriver(StubDriver):
    """The same for Triton's own launchers, whose calls of CUDA `driver.c` takes.

    Raises:
        RuntimeError: torch has a CUDA of its own, which would be hidden from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cuda = _load_driver()
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher


@functools.cache
def _load_driver() -> ctypes.CDLL:
    """Return `driver.c`, built and loaded; it is the process's CUDA driver from now on."""
    if torch.version.cuda is not None:
        raise RuntimeError("this torch has a CUDA of its own, whose driver must stay the one that is found")
    name, compiler = "libcuda.so.1", shlex.split(os.environ.get("CC", "cc"))
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    source, built = Path(__file__).with_name("driver.c"), folder / name
    subprocess.run([*compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", built], check=True)
    triton.knobs.nvidia.libcuda_path = str(folder)  # where Triton looks when it links
    return ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)


@contextlib.contextmanager
def stub_gpu(stub: StubDriver) -> Iterator[None]:
    """Launch on a GPU that is not there meanwhile; nothing of it stays."""
    kernels = [
        kernel for module in table.MODULES for kernel in vars(module).values() if isinstance(kernel, triton.JITFunction)
    ]
    devices = {kernel: [*kernel.device_caches] for kernel in kernels}
    before, prepared_before = driver._active, dict(prepared._prepared)
    prepared._prepared.clear()
    driver.set_active(stub)
    try:
        yield
    finally:
        driver._active = before
        for kernel in kernels:
            for device in set(kernel.device_caches) - set(devices[kernel]):
                compiled, *_ = kernel.device_caches.pop(device)
                for one in compiled.values():
                    one.module = None  # or it would be unloaded by whatever driver there is then
        prepared._prepared.clear()
        prepared._prepared.update(prepared_before)
