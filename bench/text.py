"""Plain-text tables: what every command here prints."""

from collections.abc import Collection, Sequence


def columns(lines: Sequence[Sequence[object]], *, left: Collection[int] = (0,)) -> str:
    """Lines of cells, aligned: the columns named by `left` to the left, the others to the right."""
    cells = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        pairs = enumerate(zip(line, widths, strict=True))
        return "  ".join(f"{cell:<{width}}" if i in left else f"{cell:>{width}}" for i, (cell, width) in pairs)

    return "\n".join(aligned(line).rstrip() for line in cells)
