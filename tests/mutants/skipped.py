"""Which parts of a module are not mutated: those without behaviour, or with behaviour that no test should fix."""

from __future__ import annotations

import ast

FUNCTIONS = {"_check", "__repr__", "__str__"}
STATEMENTS = (ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal, ast.Pass)
LOGGERS = {"_log", "log", "logger", "logging", "warnings"}
TEXT_ARGUMENTS = {"reason", "detail", "help"}
ASSERTING_ARGUMENTS = {"strict"}  # of zip: the lengths are the same
GENERICS = {"list", "tuple", "dict", "set", "Callable", "Annotated"}  # indexed names that make a type
THREAD_ARGUMENTS = {"name", "daemon"}


def name_of(function: ast.expr) -> str:
    """The dotted name of a called function; empty for anything but names and attributes."""
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        return f"{name_of(function.value)}.{function.attr}"
    return ""


def is_log(node: ast.AST) -> bool:
    """Whether `node` is a call that writes to the log, or a statement that is one."""
    if isinstance(node, ast.Expr):
        node = node.value
    return isinstance(node, ast.Call) and bool(LOGGERS & set(name_of(node.func).split(".")[:-1]))


def is_count(node: ast.AST) -> bool:
    """Whether `node` is a call that adds to a counter, or a statement that is one."""
    if isinstance(node, ast.Expr):
        node = node.value
    return isinstance(node, ast.Call) and name_of(node.func) == "counters.add"


def is_skipped(call: ast.Call, keyword: ast.keyword) -> bool:
    """Whether the argument is a text for people, an assertion, or the name of a thread."""
    threads = name_of(call.func).endswith("Thread")
    return keyword.arg in TEXT_ARGUMENTS | ASSERTING_ARGUMENTS or (threads and keyword.arg in THREAD_ARGUMENTS)


def statement(node: ast.stmt) -> bool:
    """Whether nothing in the statement is mutated."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name in FUNCTIONS
        case ast.Expr(value=ast.Constant()):  # a docstring, or ``...`` as a body
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case ast.With(items=[ast.withitem(context_expr=ast.Call(func=function))]) if "torch.cuda" in name_of(function):
            return True  # runs only on a GPU, where mutants are not run
        case ast.If(test=ast.Compare(comparators=[ast.Constant(value="cuda")]), orelse=[]):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]):
            return True
        case ast.AnnAssign(annotation=annotation):
            return ast.unparse(annotation) == "TypeAlias"
        case ast.Assign(value=ast.Subscript(value=ast.Name(id=name))):
            return name in GENERICS
    return isinstance(node, STATEMENTS) or is_log(node)


def expression(node: ast.AST, owner: ast.AST, field: str) -> bool:
    """Whether nothing in the expression at `field` of `owner` is mutated."""
    if field in ("decorator_list", "keywords") and isinstance(owner, ast.ClassDef | ast.FunctionDef):
        return True
    if isinstance(owner, ast.Call) and isinstance(node, ast.keyword):
        return is_skipped(owner, node)
    return isinstance(owner, ast.Raise) or isinstance(node, ast.JoinedStr | ast.pattern) or is_log(node)


def annotation(owner: ast.AST, field: str) -> bool:
    """Whether the expression at `field` of `owner` is a type."""
    return field in ("annotation", "returns") or (isinstance(owner, ast.ClassDef) and field == "bases")
