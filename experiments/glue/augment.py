"""More texts in the manner of a task's own, without labels: a part of a text is replaced by a part of another.

Substructure substitution (Shi, Livescu and Gimpel, "Substructure Substitution: Structured Data Augmentation for NLP",
Findings of ACL 2021), for a task whose rows are texts and their constituents, as sst2's are. Theirs keeps the label by
its rules; here a teacher reads the new text.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

LONGER = 2
"""Words by which the new part may be longer or shorter than the one it replaces."""

Words = tuple[str, ...]


def substituted(rows: Sequence[tuple[str, ...]], count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """New texts, each a text of `rows` with one part replaced, in random order; none of them stands in `rows`.

    Texts are the rows that are part of no other; a part has two words or more and is a row itself. What replaces it
    begins with the same word, so that it is mostly of the same kind of phrase.

    Args:
        rows: one string each, words set apart by spaces.
        count: how many.

    Raises:
        ValueError: rows of pairs, rows of which none is part of another, or too few of these.
    """
    if any(len(row) != 1 for row in rows):
        raise ValueError("rows of pairs have no parts that are rows; augment a task of single texts")
    known = sorted({tuple(row[0].split()) for row in rows})
    parts = _parts(known)
    inside = {text[a:b] for text, found in parts.items() for a, b in found}
    whole = [text for text in known if text not in inside and parts[text]]
    if not whole:
        raise ValueError("no row is part of another, so nothing can be replaced; augment a task whose rows are such")
    beginning: dict[str, list[Words]] = defaultdict(list)
    for row in known:
        if len(row) > 1:
            beginning[row[0]].append(row)
    rng, made, taken = np.random.default_rng(seed), dict[Words, None](), set(known)
    for _ in range(20 * count):  # most tries succeed; the bound ends those on rows that hold too few
        text = whole[rng.integers(len(whole))]
        a, b = parts[text][rng.integers(len(parts[text]))]
        part = beginning[text[a]][rng.integers(len(beginning[text[a]]))]
        new = (*text[:a], *part, *text[b:])
        if abs(len(part) - (b - a)) <= LONGER and new not in taken:
            made[new] = None
        if len(made) == count:
            return [(" ".join(words),) for words in made]
    raise ValueError(f"count={count}: the rows hold {len(whole)} texts with parts, which gave {len(made)}; ask less")


def _parts(known: Sequence[Words]) -> dict[Words, list[tuple[int, int]]]:
    """Return where in each row other rows of two words and more begin and end."""
    rows = set(known)
    return {
        row: [
            (a, b)
            for a in range(len(row) - 1)
            for b in range(a + 2, len(row) + 1)
            if b - a < len(row) and row[a:b] in rows
        ]
        for row in known
    }
