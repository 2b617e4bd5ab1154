"""One change of a syntax tree: a node's field gets another value, and later its own value again."""

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
        """A context in which the tree is changed; undone at its end."""
        was = getattr(self.owner, self.field)
        self.make()
        try:
            yield
        finally:
            setattr(self.owner, self.field, was)


class Place(NamedTuple):
    """The place of a node in the tree: a field of its owner, or an element of the list there."""

    owner: ast.AST
    field: str
    index: int | None = None

    def put(self, value: ast.AST) -> Change:
        """The change that replaces the node by `value`."""
        if self.index is None:
            return Change(self.owner, self.field, value)
        items = list(getattr(self.owner, self.field))
        items[self.index] = value
        return Change(self.owner, self.field, items)


def without(owner: ast.AST, index: int, *fields: str) -> Change:
    """The change that removes element `index` of the list in each of the fields; all fields change together."""
    lists = [[item for i, item in enumerate(getattr(owner, field)) if i != index] for field in fields]
    if len(fields) == 1:
        return Change(owner, fields[0], lists[0])
    return Change(owner, "__dict__", {**owner.__dict__, **dict(zip(fields, lists, strict=True))})
