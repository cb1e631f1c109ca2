"""One file of all parts, made while the parts are: each is added as soon as it and all before it are durable.

Knows the manifest's parts and whose thread adds them; knows nothing of what is in them, nor of how they are added.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from pabee_fast.jobs.manifest import Manifest
from pabee_fast.tables.durable import reached


class Joining:
    """A thread that joins parts; a context manager, which gives up what is not finished, after the part in hand.

    Args:
        manifest: whose parts are joined; those that it has already are taken at once.
        join: makes the file of the parts' paths, given in their order, and returns its hash; what they raise must leave
            nothing behind.
    """

    def __init__(self, manifest: Manifest, join: Callable[[Iterator[Path]], str]) -> None:
        self._manifest = manifest
        self._changed = threading.Condition()
        self._has_all = self._is_given_up = False
        self._thread = ThreadPoolExecutor(1, "join")
        self._made = self._thread.submit(join, self._parts())

    def look(self) -> None:
        """See that the manifest has another part."""
        with self._changed:
            self._changed.notify()

    def finish(self) -> str:
        """Wait for the file, once the manifest has all parts, and return its hash; raises what making it raised."""
        with self._changed:
            self._has_all = True
            self._changed.notify()
        return self._made.result()

    def __enter__(self) -> "Joining":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._is_given_up = True
            self._changed.notify()
        self._thread.shutdown()

    def _parts(self) -> Iterator[Path]:
        """Wait for each part's path; raises InterruptedError where the job gives up."""
        parts = self._manifest.parts
        for index in count():
            with self._changed:
                while not (index in parts or self._has_all or self._is_given_up):
                    self._changed.wait()
            if self._is_given_up:
                raise InterruptedError("the job was given up")
            if index not in parts:
                return
            yield self._manifest.directory / parts[index].name
            reached("table: a part was added")
