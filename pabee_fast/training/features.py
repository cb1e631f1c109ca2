"""One pass of texts through a frozen model, and what its heads read after every layer kept on disk.

Disk holds rows x layers with a head x hidden_size x 4 bytes until the store is closed: 3.4 GB for 100,000 rows of
BERT-base. Memory holds one window's features (WINDOW_BYTES) while they are computed and one part's (PART_BYTES) when
they are read back; with the rows only their logits grow, classes x 4 bytes each.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pabee_fast.errors import InputError
from pabee_fast.policies import FullDepth
from pabee_fast.scoring.scorer import Row, Scorer, row_source
from pabee_fast.scoring.stretches import texts_of

WINDOW_BYTES, PART_BYTES = 2**27, 2**26
WINDOW_ROWS = 8_192
"""The most rows of a window, since their texts and tokens are in memory too."""


class FeatureStore:
    """Features after some layers in a folder of its own, one file a layer, and the model's own answers.

    Args:
        first_layer: the first of these layers.
        folder: where the folder is made; None: where temporary files go (TMPDIR).
    """

    def __init__(self, first_layer: int = 1, folder: str | Path | None = None) -> None:
        self.first_layer = first_layer
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="pabee-fast-features-")
        self._logits: list[Tensor] = []
        self.rows = self.width = 0

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *ended: object) -> None:
        self._folder.cleanup()

    def append(self, features: Tensor, logits: Tensor, numbers: Tensor | None = None) -> None:
        """Add rows.

        Args:
            features: [layers, rows, hidden_size], after the layers from `first_layer` on.
            logits: [rows, classes] float32, at full depth.
            numbers: [rows] int64, what messages call them; None: their places.

        Raises:
            InputError: a value that is not finite; it names the row, from 0, and the layer.
        """
        for layer, of_layer in enumerate(features.float().cpu(), start=self.first_layer):
            self._require_finite(of_layer, f"the features after layer {layer}", numbers)
            with self._file(layer).open("ab") as file:
                of_layer.numpy().tofile(file)
        self._require_finite(logits.cpu(), "the logits at full depth", numbers)
        self._logits.append(logits.cpu())
        self.rows, self.width = self.rows + features.shape[1], features.shape[2]

    @property
    def logits(self) -> Tensor:
        """The model's own answers, [rows, classes] float32."""
        return torch.cat(self._logits)

    def parts(self, layer: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the features after a layer, [rows, hidden_size] float32, in input order and a part of the rows at a
        time."""
        stored = self._stored(layer)
        size = max(1, PART_BYTES // (4 * self.width))
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            yield rows, torch.from_numpy(np.array(stored[rows]))

    def take(self, layer: int, rows: Tensor) -> Tensor:
        """Return the features of some rows (int64) after a layer, [rows, hidden_size] float32."""
        return torch.from_numpy(np.asarray(self._stored(layer)[rows.numpy()]))

    def _stored(self, layer: int) -> np.ndarray:
        return np.memmap(self._file(layer), dtype=np.float32, mode="r", shape=(self.rows, self.width))

    def _file(self, layer: int) -> Path:
        return Path(self._folder.name) / f"layer-{layer}"

    def _require_finite(self, values: Tensor, what: str, numbers: Tensor | None) -> None:
        wrong = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            number = self.rows + wrong[0] if numbers is None else int(numbers[wrong[0]])
            raise InputError(f"row {number}: {what} are not finite; leave such rows out, or run the model in float32")


def run_once(
    store: FeatureStore,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    *,
    pooling: str,
    max_length: int | None = None,
    token_budget: int | None = None,
    stride: int | None = None,
    on_window: Callable[[int], None] = lambda rows: None,
) -> tuple[int, Tensor]:
    """Run rows through the packed engine at full depth and fill `store`, where each stretch of a row is a row.

    Args:
        pooling: which tokens of a row are read: "first", "last" or "mean".
        max_length, token_budget, stride: as for `Scorer`.
        on_window: told after every window how many rows are done.

    Returns:
        The most tokens of a row, at which longer ones were cut or began another stretch; and [rows] int64, how many
        stretches each was read in.

    Raises:
        InputError: a row that cannot be scored, or whose features are not finite.
    """
    scorer = Scorer(
        model, tokenizer, policy=FullDepth(), max_length=max_length, token_budget=token_budget, stride=stride
    )
    engine, source = scorer.engine, row_source(rows)
    width = model.config.hidden_size
    window = min(max(64, WINDOW_BYTES // (4 * width * len(engine.layers))), WINDOW_ROWS)
    done, cut, counts = 0, 0, [torch.zeros(0, dtype=torch.int64)]
    while taken := list(islice(source, window)):
        encoded = scorer.encode(taken, done)
        assert encoded.batch is not None
        stretches = encoded.stretches
        counts.append(torch.ones(len(taken), dtype=torch.int64) if stretches is None else torch.from_numpy(stretches))
        numbers = done + texts_of(counts[-1])
        store.append(*engine.every_feature(encoded.batch, pooling, store.first_layer), numbers)
        done, cut = done + len(taken), cut + encoded.truncated
        on_window(done)
    scorer.tell_of_cut(cut, done)
    return scorer.max_length, torch.cat(counts)
