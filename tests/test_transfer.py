import time

import numpy as np
import pytest
import torch

from pabee_fast.transfer import ALIGNMENT, Stopwatch, Together, ToHost, to_device

ARRAYS = [
    np.arange(3, dtype=np.int32),
    np.array([True, False, True]),
    np.zeros((0, 2), dtype=np.int64),
    np.arange(10, dtype=np.float32).reshape(5, 2),
    np.arange(5, dtype=np.int64)[::2],
]


@pytest.mark.parametrize("chosen", [ARRAYS, ARRAYS[2:3], ARRAYS[:1], []])
def test_arrays_that_travel_together_arrive_as_they_were_and_aligned(chosen: list[np.ndarray]) -> None:
    cpu = torch.device("cpu")
    apart = to_device(chosen, cpu)
    together = Together([np.ascontiguousarray(array) for array in chosen], cpu).tensors
    assert [each.tolist() for each in together] == [array.tolist() for array in chosen]
    assert [(each.dtype, each.shape) for each in together] == [(each.dtype, each.shape) for each in apart]
    begins = [each.data_ptr() for each in together if each.numel()]
    assert {(begin - begins[0]) % ALIGNMENT for begin in begins} <= {0}


def test_tensors_of_the_host_are_on_the_host_at_once() -> None:
    tensors = torch.arange(3), torch.ones(2, 2)
    assert all(one is other for one, other in zip(ToHost(*tensors).tensors(), tensors, strict=True))


def test_a_stopwatch_tells_the_time_until_it_was_stopped() -> None:
    began = time.perf_counter()
    watch = Stopwatch(torch.device("cpu"))
    watch.stop()
    seconds = watch.seconds()
    assert 0 <= seconds <= time.perf_counter() - began
    time.sleep(0.01)
    assert watch.seconds() == seconds
