"""What an executor is: tasks in, futures of their results out, in whatever order they finish. It knows no files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from pabee_fast.errors import InputError
from pabee_fast.jobs.worker import UNDER_WAY, About, Scored, Task


class Executor(ABC):
    """Scores tasks somewhere; a context manager, which ends its workers."""

    about: About
    workers: int = 1
    under_way: int = UNDER_WAY

    @property
    def slots(self) -> int:
        """How many tasks keep all workers busy."""
        return self.workers * self.under_way

    @abstractmethod
    def submit(self, task: Task) -> Future[Scored]:
        """Return the task's results to come.

        The future raises WorkerDied where the task's worker died `process.TRIES` times; any other exception ends the
        job.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers, with what they have under way."""

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def same_everywhere(abouts: Sequence[About]) -> About:
    """Return what all workers run; raises InputError, naming the difference, where they do not run the same."""
    for other in abouts[1:]:
        for name, value in abouts[0].identity.items():
            if other.identity[name] != value:
                raise InputError(
                    f"the workers differ in {name} ({value} on {abouts[0].device}, {other.identity[name]} on "
                    f"{other.device}): give it by an option, or leave one kind of device out"
                )
    names = [about.device for about in abouts]
    told = " + ".join(f"{names.count(name)} x {name}" if len(names) > 1 else name for name in dict.fromkeys(names))
    return replace(abouts[0], device=told)
