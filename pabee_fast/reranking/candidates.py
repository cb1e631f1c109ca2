"""Queries and their candidates: which rows are one list, and which of it are best. Knows texts and numbers alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pabee_fast.errors import InputError, UnsupportedError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Identity": lambda scores: scores,
    "Tanh": torch.tanh,
}
"""What CrossEncoders put on their one output, by torch's name of it."""


def ranks(scores: np.ndarray, lists: np.ndarray, is_ranked: np.ndarray, top_k: int | None) -> np.ndarray:
    """Return each row's rank in its list, [rows] int32 from 1: the highest score first, of equal ones the first row.

    Args:
        scores: [rows].
        lists: [rows] which list each row belongs to.
        is_ranked: [rows] bool: rows that have a score to rank by.
        top_k: the last rank that is given; None: all are.

    Returns:
        0 for rows that have no rank.
    """
    found = np.zeros(len(scores), np.int32)
    rows = np.flatnonzero(is_ranked)
    order = rows[np.lexsort((-scores[rows].astype(np.float64), lists[rows]))]  # stable, so that of ties the first leads
    _, firsts, counts = np.unique(lists[order], return_index=True, return_counts=True)
    found[order] = np.arange(1, len(order) + 1) - np.repeat(firsts, counts)
    return np.where(found <= (top_k or len(scores)), found, 0).astype(np.int32)


def pairs_of(queries: Sequence[Any], documents: Sequence[Any]) -> tuple[list[tuple[Any, Any]], np.ndarray]:
    """Return every query with every candidate of it, and which query each row is of, [rows] int64.

    Args:
        queries: texts.
        documents: for each query its candidates, or candidates that all queries share.

    Raises:
        InputError: these do not fit together.
    """
    if isinstance(queries, str) or isinstance(documents, str):
        name, given = ("queries", queries) if isinstance(queries, str) else ("documents", documents)
        raise InputError(f"{name} is one text ({given[:40]!r}): give a list of texts")
    own = [isinstance(of_query, Sequence) and not isinstance(of_query, str) for of_query in documents]
    if documents and any(own) != all(own):
        place = own.index(not own[0])
        raise InputError(f"documents holds both texts and lists (see {place}): give a list for each query, or texts")
    if not any(own) and len(documents) + len(queries) > 0:
        documents = [documents] * len(queries)
    if len(documents) != len(queries):
        raise InputError(f"{len(documents)} lists of documents for {len(queries)} queries: give one for each")
    rows = [(query, document) for query, of_query in zip(queries, documents, strict=True) for document in of_query]
    return rows, np.repeat(np.arange(len(queries)), [len(of_query) for of_query in documents])


def label_index(names: Sequence[str], kind: str, label: str | int | None) -> int:
    """Return the output that candidates are ranked by.

    Args:
        names: of the model's labels.
        kind: of its answers.
        label: by name or number; None: the one output.

    Raises:
        InputError: no such label, or none where there are several.
        UnsupportedError: a model that gives sets of labels.
    """
    if kind == "label_set":
        raise UnsupportedError(
            "the model answers with several labels at once: reranking takes one score a pair, of one output or a label"
        )
    told = f"the model has {len(names)} labels ({', '.join(names)[:200]})"
    if len(names) == 1:
        if label not in (None, 0, names[0]):
            raise InputError(f"label={label!r}: the model has one output, which is the score; leave it out")
        return 0
    if label is None:
        raise InputError(f"{told}: say by which one candidates are ranked, label={names[-1]!r} (--label) for instance")
    if label in names:
        return names.index(label)
    if isinstance(label, str) and label.isdecimal():  # as a command line gives it
        label = int(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise InputError(f"label={label!r}: {told}; give one of them")


def activation_named(name: str | None) -> Callable[[Tensor], Tensor]:
    """Return what a CrossEncoder's directory puts on its one output, by its full name; None: the sigmoid.

    Raises:
        UnsupportedError: one that is not known here.
    """
    known = ACTIVATIONS.get((name or "Sigmoid").rpartition(".")[2])
    if known is None:
        raise UnsupportedError(
            f"the CrossEncoder's activation is {name}, and known are {', '.join(ACTIVATIONS)}: store it with one of "
            "them; none changes the ranks"
        )
    return known
