"""Launches by Triton's own launchers in C, down to a driver that writes down what it is given.

`test_driver.py` runs this file in a process of its own, where `driver.c` is found as the CUDA driver.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

from bench.stub import StubDriver, stub_gpu
from pabee_fast.kernels import prepared, table
from tests.kernels.test_prepared import LAUNCHES, by_triton
from tests.kernels.test_repeated import PLACES, keep_memory

LISTENER = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p))
BYTES = {"*": 8, "i32": 4, "fp32": 4}


class Driver(StubDriver):
    """Launches by `driver.c`; what it was given is kept in `reached`: grid, block, shared memory, function, and the
    bytes of each argument."""

    def __init__(self) -> None:
        super().__init__()
        self.reached: list[tuple[Any, ...]] = []
        self.utils, self.launcher_cls = CudaUtils(), self._launcher
        self._sizes: list[int] = []
        self._listener = LISTENER(self._write)  # held, since C does not
        ctypes.CDLL("libcuda.so.1").tell(self._listener)

    def _launcher(self, source: Any, metadata: Any) -> Callable[..., None]:
        launcher = CudaLauncher(source, metadata)
        kinds = [kind for kind in source.signature.values() if kind != "constexpr"]

        def launch(*args: Any) -> None:
            self._sizes = [BYTES["*" if kind.startswith("*") else kind] for kind in kinds]
            launcher(*args)

        return launch

    def _write(self, config: Any, function: int, arguments: Any) -> None:
        given = [ctypes.string_at(arguments[place], size) for place, size in enumerate(self._sizes)]
        self.reached.append((*config[:7], function, *given))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    keep_memory(monkeypatch)
    driver = Driver()
    with stub_gpu(driver):
        yield driver


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_prepared_launch_reaches_the_driver_as_triton_s_own_does(name: str, gpu: Driver) -> None:
    launch = LAUNCHES[name]()
    launch.run()
    launch.run()
    by_triton(launch)
    first, prepared_one, own = gpu.reached
    assert first == prepared_one == own


@pytest.mark.parametrize("name", PLACES)
def test_a_repeated_launch_reaches_the_driver_as_triton_s_own_does(name: str, gpu: Driver) -> None:
    fixed, others = PLACES[name]
    place, small, large = table.REPEATED[name](**fixed), others(4), others(40)
    for given in (small, small, large):
        place(**given)
    for given in (small, large):
        prepared._prepared.clear()
        table.REPEATED[name](**fixed)(**given)
    first, repeated, larger, own, own_larger = gpu.reached
    assert first == repeated == own
    assert larger == own_larger != own
