"""The text that a command prints on a terminal with 80 columns."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

WIDTH = 80


def lines_of(*parts: RenderableType) -> list[str]:
    """The lines as they are printed; none is longer than a terminal is wide."""
    file = io.StringIO()
    Console(file=file, width=WIDTH).print(*parts)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= WIDTH
    return lines


def words_of(*parts: RenderableType) -> set[str]:
    """Every word that is printed without a line break in it."""
    return {word for line in lines_of(*parts) for word in line.split()}
