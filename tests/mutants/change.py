"""One change of a syntax tree: a field of a node gets another value, and its own back when the change is undone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Change(NamedTuple):
    """`owner.field` becomes `value`."""

    owner: ast.AST
    field: str
    value: Any

    def make(self) -> None:
        """Make the change for good."""
        setattr(self.owner, self.field, self.value)

    @contextmanager
    def made(self) -> Iterator[None]:
        """The tree is changed within the block."""
        was = getattr(self.owner, self.field)
        self.make()
        try:
            yield
        finally:
            setattr(self.owner, self.field, was)


class Place(NamedTuple):
    """Where a node hangs in the tree: at a field of its owner, or in the list there."""

    owner: ast.AST
    field: str
    index: int | None = None

    def put(self, value: ast.AST) -> Change:
        """Replace the node by `value`."""
        if self.index is None:
            return Change(self.owner, self.field, value)
        items = list(getattr(self.owner, self.field))
        items[self.index] = value
        return Change(self.owner, self.field, items)


def without(owner: ast.AST, index: int, *fields: str) -> Change:
    """Leave out element `index` of the list at each of the fields; a second field is changed with the first."""
    lists = [[item for i, item in enumerate(getattr(owner, field)) if i != index] for field in fields]
    if len(fields) == 1:
        return Change(owner, fields[0], lists[0])
    return Change(owner, "__dict__", {**owner.__dict__, **dict(zip(fields, lists, strict=True))})
