"""Answers as the columns of a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pabee_fast.errors import InputError
from pabee_fast.policies import AnswerKind

if TYPE_CHECKING:
    from pabee_fast.scoring.answers import Answers


RANKED = pa.schema(
    [
        pa.field("score", pa.float32()),
        pa.field("rank", pa.int32()),
        pa.field("exit_layer", pa.int32()),
        pa.field("error", pa.string()),
    ]
)
"""The result columns of candidates."""


def result_schema(names: Sequence[str], kind: AnswerKind, *, all_scores: bool = False) -> pa.Schema:
    """Return the result columns: prediction, score, exit_layer, error, and with `all_scores` one for each label.

    Raises:
        InputError: two labels of one name, whose columns nobody could tell apart.
    """
    fields = [
        pa.field("prediction", pa.float32() if kind == "value" else pa.string()),
        pa.field("score", pa.float32()),
        pa.field("exit_layer", pa.int32()),
        pa.field("error", pa.string()),
    ]
    if all_scores and kind != "value":
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise InputError(
                f"all_scores: the model has several labels named {', '.join(twice)}; name them apart in its config "
                "(id2label), or leave the option out"
            )
        fields += [pa.field(f"score_{name}", pa.float32()) for name in names]
    return pa.schema(fields)


def prefixed(schema: pa.Schema, prefix: str) -> pa.Schema:
    """Return the result columns under the names that they have in a table."""
    return pa.schema([field.with_name(prefix + field.name) for field in schema])


def ranked_columns(answers: "Answers", scores: np.ndarray, ranks: np.ndarray) -> pa.RecordBatch:
    """Return candidates' answers as the columns of `RANKED`.

    Args:
        scores: [rows] float32.
        ranks: [rows] int32; 0 for a row without one.
    """
    exits, failed, errors = _exits_and_errors(answers)
    columns = [
        pa.array(scores, pa.float32(), mask=failed),
        pa.array(ranks, pa.int32(), mask=ranks == 0),
        pa.array(exits, pa.int32(), mask=exits == 0),
        pa.array(errors, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RANKED)


def _exits_and_errors(answers: "Answers") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return [rows] exit layers, which rows have an error, and these."""
    exits = answers.exit_layers.numpy()
    failed, errors = np.zeros(len(exits), dtype=bool), np.full(len(exits), None)
    for row, error in answers.errors.items():
        failed[row], errors[row] = True, error
    return exits, failed, errors


def result_columns(answers: "Answers", names: Sequence[str], kind: AnswerKind, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows' answers as the columns of `result_schema`."""
    exits, failed, errors = _exits_and_errors(answers)
    scores: list[pa.Array]
    if kind == "value":
        prediction = pa.array(answers.logits[:, 0].numpy(), pa.float32(), mask=failed)
        scores = [pa.nulls(len(failed), pa.float32())]
    else:
        from pabee_fast.scoring.answers import named

        best, probabilities = named(answers.logits, names, kind)
        prediction = pa.array(best, pa.string(), mask=failed)
        columns = [probabilities.amax(dim=1), *probabilities.unbind(dim=1)]
        scores = [pa.array(column.numpy(), pa.float32(), mask=failed) for column in columns]
    others = [pa.array(exits, pa.int32(), mask=exits == 0), pa.array(errors, pa.string())]
    return pa.RecordBatch.from_arrays([prediction, scores[0], *others, *scores[1:]][: len(schema)], schema=schema)
