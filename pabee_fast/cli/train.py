"""`pabee-fast train`."""

from rich.console import Console

from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.options import takes
from pabee_fast.cli.show import quieten_transformers, stopped_in_words
from pabee_fast.shown import plain
from pabee_fast.training.kept import Kept
from pabee_fast.training.settings import TrainSettings


@takes(TrainSettings)
def train_command(settings: TrainSettings) -> None:
    """Fine-tune a classifier together with the heads through which rows leave early (PABEE's joint loss)."""
    with loading():
        from pabee_fast.training.train import train

    use_threads(settings.threads)
    quieten_transformers()
    with stopped_in_words(lambda: _kept(settings)):
        train(settings, Console())
    print(plain(f"wrote {settings.output}"))


def _kept(settings: TrainSettings) -> str:
    """Return what is kept of a training that was stopped, and how it goes on."""
    kept = Kept.beside(settings.output)
    if kept.checkpoint is None:
        return "no epoch was done, so that nothing is kept; the same command begins anew"
    return (
        f"{len(kept.epochs)} of {settings.epochs} epochs are done, the model after them is in {settings.output} and "
        f"the state of the training in {kept.folder}; the same command goes on from there"
    )
