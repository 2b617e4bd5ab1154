"""All mutants of a module, in the order of its source, and the source of one of them."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.mutants import expressions, skipped, statements
from tests.mutants.change import Change, Place
from tests.mutants.statements import Function

Shown = ast.stmt | ast.ExceptHandler | ast.match_case


class Key(NamedTuple):
    """Identifies a mutant while its statement is unchanged, even if the statement moves within its function.

    `which` counts from 1 the mutants of one function that are equal in all other fields.
    """

    module: str
    function: str
    operator: str
    statement: str
    becomes: str
    which: int = 1


class Mutant(NamedTuple):
    """One mutant. The last part of `id` is its number, from 1, among those of the same place and operator."""

    id: str
    key: Key
    lines: range  # of its statement

    def rank(self, seed: int) -> bytes:
        """Its sort key in the random order of samples; changes of other statements do not move it."""
        return hashlib.blake2b(repr((seed, *self.key)).encode(), digest_size=8).digest()


class _Scope(NamedTuple):
    names: tuple[str, ...] = ()
    function: Function = None
    shown: Shown | None = None


def mutants(module: str, source: str) -> list[Mutant]:
    """The mutants of the module at path `module`, whose text is `source`."""
    return [mutant for mutant, _ in _numbered(module, ast.parse(source))]


def mutated(module: str, source: str, identity: str) -> str:
    """The source of the module's mutant `identity`; if empty, of no mutant. Raises KeyError for an unknown one."""
    tree = ast.parse(source)
    if identity:
        {mutant.id: change for mutant, change in _numbered(module, tree)}[identity].make()
    return ast.unparse(ast.fix_missing_locations(tree))


def _numbered(module: str, tree: ast.Module) -> list[tuple[Mutant, Change]]:
    places: Counter[str] = Counter()
    keys: Counter[Key] = Counter()
    numbered = []
    for node, key, change, lines in _Walk(module).run(tree):
        place = f"{module}:{getattr(node, 'lineno', lines.start)}:{getattr(node, 'col_offset', 0)}:{key.operator}"
        places[place] += 1
        keys[key] += 1
        numbered.append((Mutant(f"{place}:{places[place]}", key._replace(which=keys[key]), lines), change))
    return numbered


Step = tuple[ast.AST, Key, Change, range]


class _Walk:
    def __init__(self, module: str) -> None:
        self._module = module
        self._texts: dict[int, set[str]] = {}  # mutated texts of each statement so far

    def run(self, tree: ast.Module) -> Iterator[Step]:
        yield from self._fields(tree, _Scope())

    def _fields(self, node: ast.AST, scope: _Scope) -> Iterator[Step]:
        """The mutants of everything within `node`."""
        for field, value in ast.iter_fields(node):
            if skipped.annotation(node, field):
                yield from self._bounds(value, scope)
            elif field in ("body", "orelse", "finalbody") and isinstance(value, list):
                yield from self._block(node, field, scope)
            else:
                listed = isinstance(value, list)
                for i, item in enumerate(value if listed else [value]):
                    if isinstance(item, ast.AST) and not skipped.expression(item, node, field):
                        yield from self._expression(item, Place(node, field, i if listed else None), scope)

    def _block(self, owner: ast.AST, field: str, scope: _Scope) -> Iterator[Step]:
        for operator, change, first, second in statements.swaps(owner, field, scope.function):
            texts = _text(first), _text(second)
            lines = range(first.lineno, second.lineno + 1)
            key = Key(self._module, ".".join(scope.names), operator, "\n".join(texts), "\n".join(reversed(texts)))
            yield first, key, change, lines
        for i, node in enumerate(getattr(owner, field)):
            if skipped.statement(node):
                continue
            here = scope._replace(shown=node)
            for operator, change in statements.mutations(node, Place(owner, field, i), scope.function):
                instead = _text(change.value[i]) if change.owner is owner else None
                yield from self._step(node, operator, change, here, instead)
            yield from self._within(node, here)

    def _within(self, node: ast.stmt, scope: _Scope) -> Iterator[Step]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                scope = scope._replace(names=(*scope.names, node.name), function=node)
            case ast.ClassDef():
                scope = scope._replace(names=(*scope.names, node.name), function=None)
            case ast.If() | ast.While():
                for operator, change in expressions.condition(node):
                    yield from self._step(node, operator, change, scope)
            case ast.AugAssign():
                for operator, change in expressions.mutations(node, Place(node, "")):
                    yield from self._step(node, operator, change, scope)
        yield from self._fields(node, scope)

    def _expression(self, node: ast.AST, place: Place, scope: _Scope) -> Iterator[Step]:
        if isinstance(node, ast.ExceptHandler | ast.match_case):
            scope = scope._replace(shown=node)
            if isinstance(node, ast.ExceptHandler):
                for operator, change in statements.handler(node):
                    yield from self._step(node, operator, change, scope, "raise")
        for operator, change in expressions.mutations(node, place):
            yield from self._step(node, operator, change, scope)
        yield from self._fields(node, scope)

    def _bounds(self, annotation: object, scope: _Scope) -> Iterator[Step]:
        """The mutants of the ``msgspec.Meta`` bounds in an annotation."""
        found = annotation if isinstance(annotation, list) else [annotation]
        for node in (n for item in found if isinstance(item, ast.AST) for n in ast.walk(item)):
            if isinstance(node, ast.Call) and skipped.name_of(node.func).endswith("Meta"):
                yield from self._expression(node, Place(node, ""), scope)

    def _step(
        self, node: ast.AST, operator: str, change: Change, scope: _Scope, becomes: str | None = None
    ) -> Iterator[Step]:
        """The mutant, unless an earlier one has the same text."""
        shown = scope.shown
        if shown is None:
            return
        before = _text(shown)
        if becomes is None:
            with change.made():
                becomes = _text(shown)
        made = self._texts.setdefault(id(shown), {before})
        if becomes not in made:
            made.add(becomes)
            key = Key(self._module, ".".join(scope.names), operator, before, becomes)
            yield node, key, change, _lines(shown)


def _text(node: Shown) -> str:
    """The text of the statement; for a compound one only its head."""
    if not hasattr(node, "body"):
        return ast.unparse(node)
    head = copy.copy(node)
    for field in ("body", "orelse", "finalbody", "handlers", "decorator_list"):
        if hasattr(head, field):
            setattr(head, field, [])
    head.body = [ast.Expr(ast.Constant(...))]
    if isinstance(head, ast.Try):
        return "try:"
    return ast.unparse(head).strip().removesuffix("...").strip()


def _lines(node: Shown) -> range:
    """The lines of the statement; for a compound one those of its head."""
    first = getattr(node, "lineno", None) or node.pattern.lineno
    inner = getattr(node, "body", None)
    last = inner[0].lineno - 1 if inner else node.end_lineno
    return range(first, max(first, last) + 1)
