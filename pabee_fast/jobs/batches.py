"""Batches of a data set of anybody's, scored one by one: what Ray Data, Spark, pandas or datasets call for each."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pabee_fast.calibration.scorer import warn_of_void
from pabee_fast.errors import InputError
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.jobs.worker import Task
from pabee_fast.policies import Policy


class BatchScorer:
    """Adds the result columns to batches: a model that is loaded once, for any map over them.

        dataset.map_batches(  # Ray Data: one model for each actor
            pf.BatchScorer,
            fn_constructor_kwargs={"model": "my-model", "policy": "patience:6"},
            batch_size=8192, batch_format="pyarrow", num_gpus=1, concurrency=4,
        )
        dataset.map(pf.BatchScorer("my-model"), batched=True, batch_size=8192)  # Hugging Face's datasets
        frame = pf.BatchScorer("my-model")(frame)  # pandas; of Spark: examples/spark.py

    Pickled, it is its arguments alone, and the model is loaded again where it comes to.

    Args:
        model: a model directory or hub id, seen by every machine.
        policy: when a row has settled, or its spelling ("patience:6"); None: the one stored with the model, as for
            `Scorer.from_pretrained`.
        text_columns: one column's name, or two for pairs.
        prefix: put before the names of the result columns.
        all_scores: whether there is a column `score_LABEL` for every label.
        **options: device, dtype, max_length, token_budget, window, tokenizers and stride, as for
            `Scorer.from_pretrained`; and threads, of the CPU.

    Raises:
        CheckpointError: as for `Scorer.from_pretrained`.
        InputError: likewise; or not one or two columns.
    """

    def __init__(
        self,
        model: str | Path,
        policy: Policy | str | None = None,
        text_columns: str | Sequence[str] = ("text",),
        *,
        prefix: str = "",
        all_scores: bool = False,
        **options: Any,
    ) -> None:
        self._columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        if len(self._columns) not in (1, 2):
            raise InputError(f"text_columns={text_columns!r}: give one column's name, or two for pairs")
        named = {"prefix": prefix, "all_scores": all_scores, **options}
        self._again = functools.partial(type(self), model, policy, tuple(self._columns), **named)
        self._prefix = prefix
        recipe = Recipe(str(model), policy, all_scores=all_scores, texts=len(self._columns), **options)
        self._worker, self.about = recipe.worker()
        if self.about.is_void:
            warn_of_void(str(model), self.about.policy_reason)

    def __reduce__(self) -> Any:
        return self._again, ()

    def __call__(self, batch: Any) -> Any:
        """Return the batch with its result columns: prediction, score, exit_layer and error.

        Args:
            batch: a pyarrow table or record batch, a pandas DataFrame, or a mapping from names to arrays or lists.

        Returns:
            The same kind of batch, a mapping as a dict. In a DataFrame or dict the new columns are numpy arrays, whose
            dtypes are the same for all batches; a row without an answer has exit layer 0 there, None for text, and NaN
            for numbers. Arrow has nulls.

        Raises:
            InputError: another kind of batch, a text column that is missing, or a result column whose name is taken.
        """
        names = _names(batch)
        if missing := [name for name in self._columns if name not in names]:
            raise InputError(f"the batch has no column {', '.join(missing)}; its columns are {', '.join(names)}")
        texts = list(zip(*(_values(batch[name]) for name in self._columns), strict=True))
        results = self._worker.score(Task.of(texts)).results
        added = dict(zip((self._prefix + name for name in results.schema.names), results.columns, strict=True))
        if taken := [name for name in added if name in names]:
            raise InputError(f"the batch has a column {', '.join(taken)} already; choose another prefix")
        if isinstance(batch, pa.Table | pa.RecordBatch):
            for name, column in added.items():
                batch = batch.append_column(name, column)
            return batch
        arrays = {name: _to_numpy(column) for name, column in added.items()}
        if isinstance(batch, Mapping):
            return {**batch, **arrays}
        series = type(batch[self._columns[0]])  # with a dtype that pandas does not choose by what is in a batch
        named = {name: series(values, index=batch.index, dtype=values.dtype) for name, values in arrays.items()}
        return batch.assign(**named)


def _names(batch: Any) -> list[str]:
    """Return the names of a batch's columns."""
    if isinstance(batch, pa.Table | pa.RecordBatch):
        return list(batch.schema.names)
    if isinstance(batch, Mapping) or (hasattr(batch, "columns") and hasattr(batch, "assign")):
        return [str(name) for name in batch]
    raise InputError(
        f"the batch is a {type(batch).__name__}: give a pyarrow table, a pandas DataFrame, or a dict of columns"
    )


def _values(column: Any) -> list[Any]:
    """Return a column's values, None where pandas has a missing one."""
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column.to_pylist()
    if hasattr(column, "isna"):
        column = column.astype(object).where(~column.isna(), None)
    return list(column)


def _to_numpy(column: pa.Array) -> np.ndarray:
    """Without nulls where the column is of whole numbers, which would else be floats wherever a batch has one."""
    whole = pa.types.is_integer(column.type)
    return np.asarray((column.fill_null(0) if whole else column).to_numpy(zero_copy_only=False))
