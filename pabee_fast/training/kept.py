"""What an interrupted training goes on from: Trainer's checkpoint of its last whole epoch, beside the output.

`OUTPUT.training` holds it until the training is done, and a record of what it is a training of. The record names the
one checkpoint that is whole; whatever else lies there is what a kill has left. Knows no torch, so that a command can
look there before it imports it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pabee_fast.errors import InputError
from pabee_fast.shown import changed
from pabee_fast.tables.durable import durable_file

RECORD = "training.json"


@dataclass
class Kept:
    """What is kept of a training.

    folder      where it lies
    identity    by name: all that decides what comes of the training
    checkpoint  the folder's name of the last whole epoch's state; None: no epoch was whole
    epochs      what is recorded of each whole epoch
    """

    folder: Path
    identity: dict[str, str] = field(default_factory=dict)
    checkpoint: str | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def beside(cls, output: Path) -> "Kept":
        """Return what is kept of the training whose output is a directory.

        Raises:
            InputError: its record cannot be read.
        """
        kept = cls(folder_beside(output))
        if not is_begun(output):
            return kept
        path = kept.folder / RECORD
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            kept.identity, kept.checkpoint, kept.epochs = told["identity"], told["checkpoint"], told["epochs"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not what a training wrote ({error}): remove {kept.folder}") from None
        return kept

    def begin_or_resume(self, identity: Mapping[str, str], *, overwrite: bool) -> Path | None:
        """Ready the folder for the training that `identity` describes.

        Args:
            overwrite: whether a training that differs is forgotten.

        Returns:
            The checkpoint to go on from; None: the training begins.

        Raises:
            InputError: a training that differs was interrupted, by what it names.
        """
        now, before = dict(identity), self.identity
        told = [changed(name, before.get(name, "unset"), now.get(name, "unset")) for name in {**before, **now}
                if before.get(name) != now.get(name)]  # fmt: skip
        if told and self.checkpoint is not None and not overwrite:
            raise InputError(
                f"{self.folder} holds a training that differs: {'; '.join(told)}. Run it as it was begun, or use "
                "--overwrite to begin anew"
            )
        if told:
            self.identity, self.checkpoint, self.epochs = now, None, []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        return None if self.checkpoint is None else self.folder / self.checkpoint

    def keep(self, checkpoint: str, epochs: list[dict[str, Any]]) -> None:
        """Record that a checkpoint in the folder is whole, and remove those before it."""
        self.checkpoint, self.epochs = checkpoint, epochs
        self._write()

    def remove(self) -> None:
        """Forget the training, which is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        told = {"identity": self.identity, "checkpoint": self.checkpoint, "epochs": self.epochs}
        with durable_file(self.folder / RECORD, "training") as file:
            file.write((json.dumps(told, indent=2, default=str) + "\n").encode())
        for other in self.folder.glob("checkpoint-*"):
            if other.name != self.checkpoint:
                shutil.rmtree(other, ignore_errors=True)


def folder_beside(output: Path) -> Path:
    """Return where a training's state lies until it is done."""
    whole = output.absolute()
    return whole.with_name(f"{whole.name}.training")


def is_begun(output: Path) -> bool:
    """Return whether a training with this output was begun, and did not end."""
    return (folder_beside(output) / RECORD).is_file()
