"""How single kernels are timed, on a device whose clock is made up."""

from collections import namedtuple
from typing import Any, cast

import pytest

from bench import graphs
from bench.graphs import Spread
from tests.bench.fake_cuda import FakeCuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(graphs, "torch", fake)
    monkeypatch.setattr(graphs.Flush, "_buffers", {})
    return fake


DEVICE = cast(Any, namedtuple("Device", "type")("cuda"))


def test_a_graph_s_time_is_the_call_s_alone_without_the_passes_that_empty_the_cache(cuda: FakeCuda) -> None:
    calls = {"short": lambda: cuda.spend(2e-6), "long": lambda: cuda.spend(3e-3)}
    seconds = graphs.sample(calls, DEVICE, rounds=4)
    assert seconds["short"] == pytest.approx([2e-6] * 4)
    assert seconds["long"] == pytest.approx([3e-3] * 4)
    assert cuda.flushes >= graphs.REPEATS, "every call is to find the cache cold"


def test_a_call_that_waits_for_the_device_is_timed_outside_of_graphs(cuda: FakeCuda) -> None:
    def waits() -> None:
        cuda.spend(5e-6)
        cuda.wait()

    with pytest.raises(RuntimeError, match="a wait during capture"):
        graphs.sample({"reads back": waits}, DEVICE, rounds=1)
    assert graphs.sample({"reads back": waits}, DEVICE, rounds=2, waiting={"reads back"}) == {
        "reads back": pytest.approx([5e-6, 5e-6])
    }


def test_variants_take_turns_and_the_order_rotates(cuda: FakeCuda) -> None:
    order: list[str] = []
    waits = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    graphs.sample(waits, DEVICE, rounds=3, waiting=waits)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_spread_is_the_median_between_a_fifth_and_four_fifths() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == Spread(median=3.5, p20=2.0, p80=5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
