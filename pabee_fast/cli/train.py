"""`pabee-fast train`."""

from rich.console import Console

from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.options import takes
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.shown import plain
from pabee_fast.training.settings import TrainSettings


@takes(TrainSettings)
def train_command(settings: TrainSettings) -> None:
    """Fine-tune a classifier together with the heads through which rows leave early (PABEE's joint loss)."""
    with loading():
        from pabee_fast.training.train import train

    use_threads(settings.threads)
    quieten_transformers()
    train(settings, Console())
    print(plain(f"wrote {settings.output}"))
