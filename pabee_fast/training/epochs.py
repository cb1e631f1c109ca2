"""What a training shows and leaves after every epoch."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pabee_fast.scoring.examples import Features
from pabee_fast.shown import plain
from pabee_fast.training.directory import save
from pabee_fast.training.evaluate import LayerScores, as_table, evaluate_layers
from pabee_fast.training.kept import RECORD, Kept
from pabee_fast.training.settings import TrainSettings


@dataclass
class Record:
    """What a training run leaves behind beside the model."""

    settings: TrainSettings
    epochs: list[dict[str, Any]] = field(default_factory=list)
    fitted: dict[str, Any] | None = None

    def as_json(self) -> str:
        """Return the settings, for each epoch its number, training loss, seconds so far and metrics by layer, and the
        last two once more where heads were fitted after them."""
        told = {"settings": asdict(self.settings), "epochs": self.epochs, "fitted": self.fitted}
        return json.dumps(told, indent=2, default=str) + "\n"


class Epochs(TrainerCallback):
    """After every epoch: evaluate every layer, show it, write the model. So a run that is cut short leaves one.

    Args:
        kept: what is kept of the training, and of an earlier run of it.
        eval_features: what every layer is evaluated on; None: nothing.
        console: where it is shown.
    """

    def __init__(
        self,
        settings: TrainSettings,
        tokenizer: PreTrainedTokenizerBase,
        eval_features: Features | None,
        console: Console,
        kept: Kept,
    ) -> None:
        self.settings, self.tokenizer, self.eval_features, self.console = settings, tokenizer, eval_features, console
        self.collator = DataCollatorWithPadding(tokenizer)
        self.kept = kept
        self.record = Record(settings, list(kept.epochs))
        before = self.record.epochs[-1]["seconds"] if self.record.epochs else 0.0
        self.started = time.monotonic() - before
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses.append(float(logs["loss"]))
        if args.disable_tqdm:
            rate = float(logs["learning_rate"])
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  loss {self.losses[-1]:.4f}  rate {rate:.2e}"
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        result: dict[str, Any] = {"epoch": epoch, "seconds": round(time.monotonic() - self.started, 1)}
        if self.losses:
            result["loss"] = sum(self.losses) / len(self.losses)
            self.losses.clear()
        result |= self._evaluate(model, f"after epoch {epoch} of {self.settings.epochs}")
        self.record.epochs.append(result)
        self._save(model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.kept.keep(f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", self.record.epochs)

    def on_fitted(self, model: Any) -> None:
        """Evaluate, show and write the model once more, with heads that were fitted to its answers."""
        seconds = round(time.monotonic() - self.started, 1)
        self.record.fitted = {"seconds": seconds, **self._evaluate(model, "with fitted heads")}
        self._save(model)

    def _evaluate(self, model: Any, when: str) -> dict[str, Any]:
        if self.eval_features is None:
            return {}
        scores: list[LayerScores] = evaluate_layers(
            model, self.eval_features, self.collator, batch_size=self.settings.batch_size
        )
        evaluated = escape(plain(Path(self.settings.eval or "").resolve().name))
        self.console.print(as_table(f"{evaluated} {when}", scores))
        return {column.metric: column.by_layer for column in scores}

    def _save(self, model: Any) -> None:
        save(model, self.tokenizer, self.settings.output, {RECORD: self.record.as_json()})
