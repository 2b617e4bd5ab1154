"""Operators that change an expression: each yields its name and the change."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.mutants.change import Change, Place, without
from tests.mutants.skipped import is_skipped, name_of

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
NEGATED_BY_COMPARISON = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}
LARGE = 1000  # larger numbers are bounds or markers: one neighbour is enough

Found = Iterator[tuple[str, Change]]


def mutations(node: ast.AST, place: Place) -> Found:
    """All changes of the expression `node` at `place` itself, without those of its parts."""
    match node:
        case ast.Compare():
            yield from _comparison(node)
        case ast.BoolOp(op=op, values=values):
            yield "and-or", Change(node, "op", ast.Or() if isinstance(op, ast.And) else ast.And())
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield "operand", place.put(rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield "unary", place.put(operand)
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield "arithmetic", Change(node, "op", ARITHMETIC[type(op)]())
            if isinstance(node, ast.BinOp) and isinstance(op, ast.BitOr):  # flags, or types
                yield from (("operand", place.put(side)) for side in (node.left, node.right))
        case ast.Constant(value=bool() as value):
            yield "constant", Change(node, "value", not value)
        case ast.Constant(value=int() as value):
            for other in (value + 1,) if value >= LARGE else (value + 1, value - 1):
                yield "number", Change(node, "value", other)
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None and not isinstance(lower, ast.Constant):
                yield "slice", Change(node, "lower", ast.BinOp(lower, ast.Add(), ast.Constant(1)))
            if upper is not None and not isinstance(upper, ast.Constant):
                yield "slice", Change(node, "upper", ast.BinOp(upper, ast.Sub(), ast.Constant(1)))
        case ast.IfExp():
            yield from condition(node)
        case ast.comprehension(ifs=ifs):
            for i, test in enumerate(ifs):
                yield "filter", without(node, i, "ifs")
                yield from _negated(test, Place(node, "ifs", i))
        case ast.Call():
            yield from _call(node)
        case (
            ast.Tuple(elts=elements, ctx=ast.Load()) | ast.List(elts=elements, ctx=ast.Load()) | ast.Set(elts=elements)
        ):
            if len(elements) > 1 and not _unpacked(place.owner):
                yield from (("element", without(node, i, "elts")) for i in range(len(elements)))
        case ast.Dict(keys=keys):
            yield from (("element", without(node, i, "keys", "values")) for i in range(len(keys)))


def condition(node: ast.If | ast.While | ast.IfExp) -> Found:
    """The changes that negate the condition of `node`."""
    yield from _negated(node.test, Place(node, "test"))


def _negated(test: ast.expr, place: Place) -> Found:
    """Negate `test`, unless another operator makes the same change."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], NEGATED_BY_COMPARISON):
        return
    if not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
        yield "condition", place.put(ast.UnaryOp(ast.Not(), test))


def _unpacked(owner: ast.AST) -> bool:
    """Whether the tuple is unpacked into as many names as it has elements."""
    return isinstance(owner, ast.Assign) and any(isinstance(target, ast.Tuple | ast.List) for target in owner.targets)


def _comparison(node: ast.Compare) -> Found:
    for i, op in enumerate(node.ops):
        yield "compare", Change(node, "ops", [*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1 :]])
    sides = [node.left, *node.comparators]
    if len(sides) == 2 and all(isinstance(side, ast.Tuple) for side in sides):
        left, right = (side.elts for side in sides if isinstance(side, ast.Tuple))
        for i in range(len(left) if len(left) == len(right) else 0):  # compare one element less
            fewer = [ast.Tuple([*side[:i], *side[i + 1 :]], ast.Load()) for side in (left, right)]
            yield "element", Change(node, "__dict__", {**node.__dict__, "left": fewer[0], "comparators": [fewer[1]]})


def _call(node: ast.Call) -> Found:
    name = name_of(node.func)
    if name in FUNCTIONS:
        fitting = [k for k in node.keywords if FUNCTIONS[name] != "list"]
        yield (
            "function",
            Change(node, "__dict__", {**node.__dict__, "func": ast.Name(FUNCTIONS[name]), "keywords": fitting}),
        )
    for i, keyword in enumerate(node.keywords):
        if not is_skipped(node, keyword):
            yield "keyword", without(node, i, "keywords")
