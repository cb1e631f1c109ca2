"""Which rows a model has learned from: a few hashes in its config, so that no promise is tested on rows it knows.

The hashes are the `MOST` smallest of all rows', a bottom-k sketch (Bar-Yossef et al. 2002, "Counting Distinct Elements
in a Data Stream"): of a row whose hash is not above the largest one kept it is known whether it is among them, and such
rows are a uniform sample of any other texts. The sketch of two sets of rows is the sketch of both sketches.

Of 2,000 rows held against 100,000 learned ones about 20 are known of, against a million 2: then nothing can be told.
"""

import base64
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from pabee_fast.errors import CheckpointError
from pabee_fast.models.heads import CONFIG_ENTRY, LEARNED_ROWS
from pabee_fast.scoring.scorer import Row, readable

MOST = 1_024
"""They are 11 kB of config."""

PART_ROWS = 8_192

NOT_KNOWN, UNSEEN, LEARNED = -1, 0, 1
"""What `LearnedRows.flags` says of a row."""


class LearnedRows:
    """A sketch of the rows that a model has learned from."""

    def __init__(self) -> None:
        self.hashes = np.empty(0, np.uint64)  # ascending

    @classmethod
    def of(cls, config: Any) -> "LearnedRows | None":
        """Return the sketch that a model's config holds, of backbone and heads together; None: it holds none.

        Raises:
            CheckpointError: the config's entry is no such sketch.
        """
        kept = (getattr(config, CONFIG_ENTRY, None) or {}).get(LEARNED_ROWS)
        if kept is None:
            return None
        found = cls()
        try:
            for hashes in kept.values():
                found._merge(np.frombuffer(base64.b64decode(hashes, validate=True), "<u8").astype(np.uint64))
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the config's {CONFIG_ENTRY}.{LEARNED_ROWS} cannot be read ({error}): remove it from config.json"
            ) from error
        return found

    def add(self, rows: Iterable[Row]) -> None:
        """Count rows, texts or pairs, among those learned from."""
        for _ in self.watch(rows):
            pass

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows themselves, each counted as it passes."""
        part: list[Row] = []
        for row in rows:
            part.append(row)
            if len(part) == PART_ROWS:
                self._merge(hashes_of(part))
                part = []
            yield row
        self._merge(hashes_of(part))

    def flags(self, rows: Sequence[Row]) -> np.ndarray:
        """LEARNED, UNSEEN or NOT_KNOWN of each row, int8."""
        hashes = hashes_of(rows)
        found = np.where(np.isin(hashes, self.hashes), LEARNED, UNSEEN).astype(np.int8)
        if len(self.hashes) == MOST:
            found[hashes > self.hashes[-1]] = NOT_KNOWN
        return found

    def look_up(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Of the rows that differ: of how many it is known whether they were learned from, and how many were."""
        different = {hashed: flag for hashed, flag in zip(hashes_of(rows).tolist(), self.flags(rows), strict=True)}
        flags = list(different.values())
        return len(flags) - flags.count(NOT_KNOWN), flags.count(LEARNED)

    def _merge(self, hashes: np.ndarray) -> None:
        self.hashes = np.union1d(self.hashes, hashes)[:MOST]


def remember(config: Any, part: str, rows: LearnedRows | None) -> None:
    """Put what a part of a model with heads, BACKBONE or HEADS, has learned from into its config.

    Rows of None are not to be told: then the config keeps none at all, or those would pass as unseen.
    """
    entry = getattr(config, CONFIG_ENTRY)
    kept = entry.pop(LEARNED_ROWS, {})
    if rows is not None:
        entry[LEARNED_ROWS] = {**kept, part: base64.b64encode(rows.hashes.astype("<u8").tobytes()).decode()}


def hashes_of(rows: Sequence[Row], seed: int | None = None) -> np.ndarray:
    """Return a hash of each row, uint64, whatever its case and white space, which tokenizers may not see.

    Args:
        seed: of hashes that have nothing to do with those of another seed, nor with those that configs keep (None).
    """
    columns, _ = readable(rows)
    texts = zip(*(column.to_pylist() for column in columns), strict=True)
    plain = (
        [" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in row if text is not None]
        for row in texts
    )
    person, salt = (b"", b"") if seed is None else (b"seed", seed.to_bytes(16, "little"))
    digests = (blake2b(json.dumps(row).encode(), digest_size=8, person=person, salt=salt).digest() for row in plain)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
