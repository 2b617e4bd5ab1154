"""The habits of this house that a program can check: one lint, one test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(p for package in ("kvmarket", "vllm_hook") for p in (ROOT / package).rglob("*.py"))
SOURCES = LIBRARY + sorted(p for folder in ("tests", "bench", "examples") for p in (ROOT / folder).rglob("*.py"))
TEXTS = SOURCES + sorted(p for pattern in ("*.md", "*.toml", "Makefile", ".ci/run") for p in ROOT.glob(pattern))

MOST_LINES = 300
LONGER: dict[str, str] = {}  # path: why this one file may be longer

# What the modules below a path may not import. A module stands above all that it imports.
FORBIDDEN = {
    "kvmarket/": ("vllm", "vllm_hook", "pickle"),
    "kvmarket/layout.py": ("kvmarket.pool", "kvmarket.transport", "kvmarket.registry", "kvmarket.market", "zmq"),
    "kvmarket/kernels/": ("kvmarket.pool", "kvmarket.transport", "kvmarket.registry", "kvmarket.market", "zmq"),
    "kvmarket/pool/": ("kvmarket.registry", "kvmarket.market", "zmq"),
    "kvmarket/transport/": ("kvmarket.registry", "kvmarket.market", "zmq"),
    "kvmarket/registry/": ("kvmarket.market", "torch", "triton"),
    "kvmarket/registry/trie.py": ("zmq",),
    "vllm_hook/": ("pickle",),
}
SLOW_CALLS = re.compile(r"\.item$|\bcuda\.synchronize$|\bcuda\.set_device$")  # an event may be waited for, a device not


def name_of(path: Path) -> str:
    """`path` as the repository names it; also the test's id."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed module."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def at(path: Path, node: ast.AST, what: str) -> str:
    """One finding, as editors jump to it."""
    return f"{name_of(path)}:{getattr(node, 'lineno', 1)}: {what}"


def calls(path: Path) -> Iterator[ast.Call]:
    """Every call in the module."""
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every absolute name that the module imports, wherever in it; `from a import b` is both `a` and `a.b`."""
    package = name_of(path).removesuffix(".py").removesuffix("/__init__").split("/")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield node, base
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


library = pytest.mark.parametrize("path", LIBRARY, ids=name_of)
sources = pytest.mark.parametrize("path", SOURCES, ids=name_of)
texts = pytest.mark.parametrize("path", TEXTS, ids=name_of)


@sources
def test_module_says_what_it_is(path: Path):
    empty_marker = path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip() and path not in LIBRARY
    assert empty_marker or ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring"


@sources
def test_file_is_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    reason = LONGER.get(name_of(path))
    if reason is None:
        assert lines <= MOST_LINES, f"{name_of(path)} has {lines} lines; split it, or say in LONGER why"
    else:
        assert lines > MOST_LINES, f"{name_of(path)} is short again; take it out of LONGER"


@library
def test_no_print(path: Path):
    found = [at(path, c, "print") for c in calls(path) if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not found, "\n".join(found)


@sources
def test_no_blanket_except(path: Path):
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {c.id for c in caught if isinstance(c, ast.Name)}
            if node.type is None or names & {"Exception", "BaseException"}:
                found.append(at(path, node, "blanket except; name what can be raised"))
    assert not found, "\n".join(found)


@library
def test_nothing_waits_for_the_gpu(path: Path):
    found = [
        at(path, c, f"{ast.unparse(c.func)}() waits for a device or changes it for everybody")
        for c in calls(path)
        if SLOW_CALLS.search(ast.unparse(c.func))
    ]
    assert not found, "\n".join(found)


@library
def test_layers(path: Path):
    found = [
        at(path, node, f"{where} may not import {name}")
        for where, banned in FORBIDDEN.items()
        if name_of(path).startswith(where)
        for node, name in imports(path)
        if any(name == b or name.startswith(f"{b}.") for b in banned)
    ]
    assert not found, "\n".join(sorted(set(found)))


@texts
def test_knows_no_machine(path: Path):
    # Spelled so that this file does not find itself.
    found = re.findall(r"/(?:home|root|work|Users)/[\w.-]+", path.read_text(encoding="utf-8"))
    assert not found, f"{name_of(path)} names a path of one machine: {found}"


@texts
def test_promises_are_tracked(path: Path):
    found = re.findall(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b(?!\(#\d+\))", path.read_text(encoding="utf-8"))
    assert not found, f"{name_of(path)}: write the issue's number behind it, as in {found[0]}(#12)"


def test_exceptions_exist():
    known = {name_of(p) for p in SOURCES}
    assert set(LONGER) <= known, f"LONGER names files that are gone: {set(LONGER) - known}"
