"""Markdown of the documentation's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def short(value: float) -> str:
    """`value` with no more than three significant digits."""
    return f"{float(f'{value:.3g}'):,.10g}"


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table, after an empty line; an empty list if there are no rows."""
    head, rows = list(head), [list(row) for row in rows]
    if not rows:
        return []
    return ["", *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))]
