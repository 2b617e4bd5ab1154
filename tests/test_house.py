"""The habits of this house that a program can check: one lint, one test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(p for package in ("kvmarket", "vllm_hook") for p in (ROOT / package).rglob("*.py"))
BENCH = sorted((ROOT / "bench").rglob("*.py"))
SOURCES = LIBRARY + BENCH + sorted(p for folder in ("tests", "examples") for p in (ROOT / folder).rglob("*.py"))
TEXTS = SOURCES + sorted(
    p for pattern in ("*.md", "docs/*.md", "*.toml", "*.yml", "Makefile", ".ci/run") for p in ROOT.glob(pattern)
)

MOST_LINES = 300
MOST_MODULES = 12  # in one folder, its __init__ aside
LONGER: dict[str, str] = {}  # path: why this one file may be longer

# What the modules below a path may not import. A module stands above all that it imports.
ABOVE = ("kvmarket.registry", "kvmarket.market")
FORBIDDEN = {
    "kvmarket/": ("vllm", "vllm_hook", "pickle"),
    "kvmarket/support/": (*(f"kvmarket.{room}" for room in ("layout", "kernels", "pool", "transport", "ways")), *ABOVE),
    "kvmarket/processes/": (
        "torch",
        *(f"kvmarket.{room}" for room in ("layout", "kernels", "pool", "transport", "ways")),
        *ABOVE,
    ),
    "kvmarket/layout/": ("kvmarket.kernels", "kvmarket.pool", "kvmarket.transport", "kvmarket.ways", *ABOVE),
    "kvmarket/kernels/": ("kvmarket.pool", "kvmarket.transport", "kvmarket.ways", *ABOVE),
    "kvmarket/pool/": ("kvmarket.ways", *ABOVE),
    "kvmarket/transport/": ("kvmarket.pool", "kvmarket.ways", *ABOVE),
    "kvmarket/ways/": ABOVE,
    "kvmarket/registry/": (
        "kvmarket.layout",
        "kvmarket.kernels",
        "kvmarket.pool",
        "kvmarket.market",
        "torch",
        "triton",
    ),
    "kvmarket/registry/trie/": tuple(
        f"kvmarket.registry.{room}" for room in ("protocol", "space", "service", "client")
    ),
    "kvmarket/registry/protocol/": tuple(f"kvmarket.registry.{room}" for room in ("space", "service", "client")),
    "kvmarket/registry/space/": tuple(f"kvmarket.registry.{room}" for room in ("service", "client")),
    "kvmarket/registry/service/": ("kvmarket.registry.client",),
    "kvmarket/registry/client/": ("kvmarket.registry.service",),
    "kvmarket/market/": ("kvmarket.cli", "kvmarket.lend"),
    "kvmarket/lend/": ("kvmarket.cli",),
    "vllm_hook/": ("pickle",),
    "bench/": ("tests",),
    "bench/engines/": ("bench.hook",),
}
MACHINE = re.compile(r"/(?:home|root|work|Users)/[\w.-]+")
PROMISE = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b(?!\(#\d+\))")  # in two parts, so as not to find itself
SLOW_CALLS = re.compile(r"\.item$|\bcuda\.synchronize$|\bcuda\.set_device$")  # an event may be waited for, a device not


def name_of(path: Path) -> str:
    """`path` as the repository names it."""
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


def found_in(paths: list[Path], look: Callable[[Path], Iterable[str]]) -> str:
    """What `look` finds in any of the files, one finding a line; each is reported at once, not the first alone."""
    return "\n".join(finding for path in paths for finding in look(path))


def test_modules_say_what_they_are():
    def look(path: Path) -> Iterator[str]:
        if not ast.get_docstring(tree_of(path)) and (path in LIBRARY or tree_of(path).body):
            yield at(path, tree_of(path), "no docstring")

    assert not (found := found_in(SOURCES, look)), found


def test_files_are_short():
    def look(path: Path) -> Iterator[str]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES and name_of(path) not in LONGER:
            yield at(path, tree_of(path), f"{lines} lines; split it, or say in LONGER why it is one")
        if lines <= MOST_LINES and name_of(path) in LONGER:
            yield at(path, tree_of(path), "is short again; take it out of LONGER")

    assert not (found := found_in(SOURCES, look)), found
    assert set(LONGER) <= {name_of(path) for path in SOURCES}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150, "the rest belongs into docs/"


def test_folders_hold_few_modules():
    held: dict[Path, int] = {}
    for path in LIBRARY + BENCH:
        held[path.parent] = held.get(path.parent, 0) + (path.name != "__init__.py")
    assert not (full := {name_of(folder): count for folder, count in held.items() if count > MOST_MODULES}), full


def test_no_module_imports_itself_through_others():
    """A circle: whoever reads one of its modules has to know all of them."""
    modules = LIBRARY + BENCH
    names = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in modules}
    below: dict[str, set[str]] = {}
    for name, path in names.items():
        found: dict[ast.AST, set[str]] = {}
        for node, other in imports(path):
            found.setdefault(node, set()).update({other} & names.keys() - {name})
        below[name] = {max(each, key=len) for each in found.values() if each}  # a module, where it is not its package
    while free := [name for name, needed in below.items() if not needed & below.keys()]:
        for name in free:
            del below[name]
    assert not below, {name: sorted(needed & below.keys()) for name, needed in below.items()}


def test_no_print():
    def look(path: Path) -> Iterator[str]:
        yield from (at(path, call, "print") for call in calls(path) if ast.unparse(call.func) == "print")

    assert not (found := found_in(LIBRARY, look)), found


def test_no_blanket_except():
    def look(path: Path) -> Iterator[str]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(c is None or ast.unparse(c) in ("Exception", "BaseException") for c in caught):
                    yield at(path, node, "blanket except; name what can be raised")

    assert not (found := found_in(SOURCES, look)), found


def test_nothing_waits_for_a_device():
    def look(path: Path) -> Iterator[str]:
        for call in calls(path):
            if SLOW_CALLS.search(name := ast.unparse(call.func)):
                yield at(path, call, f"{name}() waits for a device, or changes it for everybody")

    assert not (found := found_in(LIBRARY, look)), found


def test_generations_are_raised_in_one_place():
    """Offers die by that alone; whoever looks for it finds it in one guess."""
    raisers = {
        name_of(path)
        for path in LIBRARY
        for call in calls(path)
        if ast.unparse(call.func).rpartition(".")[2] in ("raise_slots", "raise_epoch")
    }
    assert raisers == {"kvmarket/market/own_pool.py", "kvmarket/pool/generations.py"}, "it closes itself too"


def test_layers():
    def look(path: Path) -> Iterator[str]:
        for where, banned in FORBIDDEN.items():
            if name_of(path).startswith(where):
                for node, name in imports(path):
                    if any(name == b or name.startswith(f"{b}.") for b in banned):
                        yield at(path, node, f"{where} may not import {name}")

    assert not (found := found_in(LIBRARY + BENCH, look)), found


@pytest.mark.parametrize(
    "module", ["kvmarket", "kvmarket.registry", "kvmarket.registry.service.service", "kvmarket.cli"]
)
def test_starts_without_torch(module: str):
    """What the service and the command line load, however indirectly."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'triton', 'vllm'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_knows_no_machine():
    def look(path: Path) -> Iterator[str]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield from (f"{name_of(path)}:{number}: {found}" for found in MACHINE.findall(line))

    assert not (found := found_in(TEXTS, look)), found


def test_promises_are_tracked():
    def look(path: Path) -> Iterator[str]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield from (f"{name_of(path)}:{number}: {word} needs an issue's number" for word in PROMISE.findall(line))

    assert not (found := found_in(TEXTS, look)), found
