"""Launches by Triton's own launchers, down to a driver that writes down what it is given.

`test_driver.py` runs this file in a process of its own, which has that driver from then on.
"""

import ctypes
import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from triton.backends.nvidia.driver import CudaLauncher

from bench import host
from bench.stub import LauncherDriver, stub_gpu
from pabee_fast.kernels import prepared, table
from tests.kernels.test_prepared import LAUNCHES, by_triton
from tests.kernels.test_repeated import PLACES, keep_memory

LISTENER = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p))
BYTES = {"*": 8, "i32": 4, "fp32": 4}


class Driver(LauncherDriver):
    """What reaches `driver.c` is kept in `reached`: grid, block, shared memory, function, and the bytes of each
    argument."""

    def __init__(self) -> None:
        super().__init__()
        self.reached: list[tuple[Any, ...]] = []
        self.launcher_cls = functools.partial(Launcher, self)
        self.sizes: list[int] = []
        self.by_triton = 0
        """Launches for which Triton's launcher was called, and not its C function alone."""
        self._listener = LISTENER(self._write)  # held, since C does not
        self.cuda.tell(self._listener)

    def _write(self, config: Any, function: int, arguments: Any) -> None:
        given = [ctypes.string_at(arguments[place], size) for place, size in enumerate(self.sizes)]
        self.reached.append((*config[:7], function, *given))


class Launcher(CudaLauncher):
    """Triton's own, which lets the driver know how many bytes its arguments have."""

    def __init__(self, driver: Driver, source: Any, metadata: Any) -> None:
        super().__init__(source, metadata)
        kinds = [kind for kind in source.signature.values() if kind != "constexpr"]
        sizes, in_c = [BYTES["*" if kind.startswith("*") else kind] for kind in kinds], self.launch

        def launch(*args: Any) -> None:
            driver.sizes = sizes
            in_c(*args)

        self.driver, self.launch = driver, launch

    def __call__(self, *args: Any) -> None:
        self.driver.by_triton += 1
        super().__call__(*args)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    keep_memory(monkeypatch)
    driver = Driver()
    with stub_gpu(driver):
        yield driver
    driver.cuda.tell(None)


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_prepared_launch_reaches_the_driver_as_triton_s_own_does(name: str, gpu: Driver) -> None:
    launch = LAUNCHES[name]()
    launch.run()
    launch.run()
    by_triton(launch)
    first, prepared_one, own = gpu.reached
    assert first == prepared_one == own
    assert gpu.by_triton == 2


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
    assert gpu.by_triton == 3


def test_a_layer_is_timed_with_triton_s_launcher(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "CALLS", 1)
    assert host.main(["--rounds", "1", "--launcher"]) == 0
    *printed, document = capsys.readouterr().out.splitlines()
    assert json.loads(document)["has_launcher"]
    assert any("with Triton's launcher" in line for line in printed)
