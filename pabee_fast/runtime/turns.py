"""What is set differently inside a model while it runs packed rows, by one thread at a time, and given back after."""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig

_locks: dict[int, threading.RLock] = {}


@contextlib.contextmanager
def turn_with(configs: Iterable[PretrainedConfig]) -> Iterator[None]:
    """Hold what a thread needs while it runs layers with these configs, whose attention is rerouted meanwhile."""
    with contextlib.ExitStack() as held:
        for lock in map(_lock, sorted(configs, key=id)):  # in one order, or two threads might wait for each other
            held.enter_context(lock)
        yield


def _lock(config: PretrainedConfig) -> threading.RLock:
    lock = _locks.get(key := id(config))  # a config equals others of its content, and has no hash
    if lock is None:
        lock = _locks.setdefault(key, threading.RLock())
        weakref.finalize(config, _locks.pop, key, None)
    return lock


@contextlib.contextmanager
def unchunked(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Run feed-forward layers in one piece: chunks change no result, and would have to divide every wave's tokens."""
    before = {part: size for part in parts if (size := vars(part).get("chunk_size_feed_forward"))}
    _set_chunks(dict.fromkeys(before, 0))
    try:
        yield
    finally:
        _set_chunks(before)


def _set_chunks(sizes: dict[nn.Module, int]) -> None:
    for part, size in sizes.items():
        part.chunk_size_feed_forward = size  # type: ignore[assignment]


gelu_tanh = functools.partial(nn.functional.gelu, approximate="tanh")


@contextlib.contextmanager
def instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let these functions be called in place of the modules' own, which compute the same but for rounding."""
    for part, forward in forwards.items():
        part.forward = forward
    try:
        yield
    finally:
        for part in forwards:
            del part.forward
