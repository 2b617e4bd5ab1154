"""Operators that change statements: they remove one, swap two, or return another value."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.mutants.change import Change, Place
from tests.mutants.expressions import Found
from tests.mutants.skipped import is_count, is_log, statement

EMPTY = {"int": 0, "float": 0.0, "str": "", "bytes": b""}
DISPLAYS = {"tuple": "()", "list": "[]", "dict": "{}", "set": "set()", "Sequence": "()", "Iterator": "iter(())"}
STAY = (ast.Return, ast.Raise, ast.Continue, ast.Break, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
PURE = {
    "len",
    "int",
    "str",
    "bool",
    "min",
    "max",
    "range",
    "list",
    "tuple",
    "dict",
    "set",
    "sorted",
    "isinstance",
    "repr",
}
PURE |= {"zip", "enumerate", "sum", "any", "all", "next", "iter", "frozenset", "type", "getattr", "hasattr", "float"}

Function = ast.FunctionDef | ast.AsyncFunctionDef | None


def mutations(node: ast.stmt, place: Place, function: Function) -> Found:
    """All changes of the statement `node` at `place`."""
    match node:
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom() | ast.Await()):
            yield "removal", place.put(ast.Pass())
        case ast.AugAssign() | ast.Delete() | ast.Raise():
            yield "removal", place.put(ast.Pass())
        case ast.Assign(targets=targets) if function is not None and function.name != "__init__":
            if all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
                yield "removal", place.put(ast.Pass())
        case ast.Return(value=value):
            body = function.body if function is not None else []
            if node is not body[-1]:
                yield "removal", place.put(ast.Pass())
            if value is not None:
                yield from _returned(node, function)
        case ast.Continue():
            yield "loop", place.put(ast.Break())
            yield "removal", place.put(ast.Pass())
        case ast.Break():
            yield "loop", place.put(ast.Continue())
            yield "removal", place.put(ast.Pass())


def handler(node: ast.ExceptHandler) -> Found:
    """The change that raises a caught exception again instead of handling it."""
    if not (len(node.body) == 1 and isinstance(node.body[0], ast.Raise)):
        yield "handler", Change(node, "body", [ast.Raise()])


def swaps(owner: ast.AST, field: str, function: Function) -> Iterator[tuple[str, Change, ast.stmt, ast.stmt]]:
    """The swaps of two adjacent statements of a function whose order may matter."""
    block: list[ast.stmt] = getattr(owner, field)
    for i in range(len(block) - 1):
        first, second = block[i], block[i + 1]
        if function is not None and _may_matter(first, second, function):
            yield "swap", Change(owner, field, [*block[:i], second, first, *block[i + 2 :]]), first, second


def _returned(node: ast.Return, function: Function) -> Found:
    """The changes to another value of the annotated return type; to None if there is no simple one."""
    returns = ast.unparse(function.returns) if function is not None and function.returns is not None else ""
    kind = returns.partition("[")[0]
    if kind == "bool":
        others = ["True", "False"]
    elif kind in DISPLAYS:
        others = [DISPLAYS[kind]]
    else:
        others = [repr(EMPTY.get(kind))]
    said = ast.unparse(node.value) if node.value is not None else ""
    for other in others:
        negation = isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool)
        if other != said and not negation:  # the operator "constant" changes True and False
            yield "returned", Change(node, "value", ast.parse(other, mode="eval").body)


def _may_matter(first: ast.stmt, second: ast.stmt, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    pair = (first, second)
    if any(isinstance(node, STAY) or statement(node) or is_count(node) or is_log(node) for node in pair):
        return False
    if all(isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) for t in node.targets) for node in pair):
        return False  # two local variables
    private = function.name == "__init__"  # attributes set there are not visible yet
    if private and all(isinstance(node, ast.Assign | ast.AnnAssign) for node in pair):
        return False
    if not all(_has_effect(node, private) for node in pair) or not any(_calls(node) for node in pair):
        return False
    bound = {n.id for n in ast.walk(first) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return not any(isinstance(n, ast.Name) and n.id in bound for n in ast.walk(second))


def _calls(node: ast.AST) -> bool:
    """Whether it has a call that may have an effect."""
    called = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return any(not (isinstance(function, ast.Name) and function.id in PURE) for function in called)


def _has_effect(node: ast.stmt, private: bool) -> bool:
    """Whether the statement calls, returns, or writes what others can see (attributes not, if `private`)."""
    return _calls(node) or any(
        isinstance(n, ast.Return | ast.Raise | ast.Delete)
        or (not private and isinstance(n, ast.Attribute | ast.Subscript) and isinstance(n.ctx, ast.Store | ast.Del))
        for n in ast.walk(node)
    )
