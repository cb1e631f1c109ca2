"""What a command waits for before its first row: the import of torch, transformers and what is built on them."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import a command's modules in a `with` of this, which looks for no garbage meanwhile, nor in them afterwards.

    Modules stay until the end, and to look for garbage among them again and again takes an eighth of the time to the
    first row.
    """
    if "torch" in sys.modules or not gc.isenabled():  # all is there already, or somebody else decides
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries take what is never collected for leaks, and print so
    finally:
        gc.enable()


def use_threads(threads: int | None) -> None:
    """Let torch compute by so many threads of the CPU; None: as many as it chose itself."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
