"""A campaign: runs each module's tests on the unchanged code, then on each of its mutants, several at a time."""

from __future__ import annotations

import contextlib
import gc
import importlib
import select
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.mutants import testing
from tests.mutants.mutant import Mutant, mutated
from tests.mutants.processes import Child, Ended
from tests.mutants.table import Table, TableError

T = TypeVar("T", bound=Hashable)

PATIENCE = 4.0
FIRST_SECONDS = 600.0  # limit for tests that were not measured yet
MEMORY = 6 << 30
FEW_MODULES = 20  # tests that load more modules of other projects make a mutant slow: these are imported in the parent
UNIMPORTABLE = (ImportError, AttributeError, KeyError, NameError, OSError, RuntimeError, TypeError, ValueError)


class Verdict(NamedTuple):
    """The outcome of a mutant: killed, hang, or survived."""

    mutant: Mutant
    outcome: str
    by: str  # the first test that failed
    seconds: float


class Campaign:
    """Runs the tests of `table` in the tree at `root`, `jobs` children at a time.

    A mutant may take four times as long as its tests do on the unchanged code, or `least` seconds if that is more.
    """

    def __init__(
        self, root: Path, table: Table, sources: dict[str, str], jobs: int, least: float, say: Callable[[str], None]
    ) -> None:
        """`sources`: the text of each module of the table, by path."""
        self._root, self._table, self._sources, self._jobs, self._least, self._say = (
            root,
            table,
            sources,
            jobs,
            least,
            say,
        )
        self._tried: set[str] = set()  # modules of other projects that this process has tried to import
        self._seconds: dict[str, float] = {}  # by module: of its tests on the unchanged code

    def prepare(self, modules: Sequence[str]) -> None:
        """Run the tests of these modules on the unchanged code, and import here what they import from other projects.

        Raises TableError unless all tests pass and import their module, and each name in the table is that of a test.
        """
        names = sorted({name for module in modules for name in self._table.tests[module]})
        self._say(f"collecting the tests of {len(modules)} modules")
        ended = Child(testing.collect(self._root, names), FIRST_SECONDS, MEMORY).ended()
        result = _passed(ended, "these tests cannot be collected")
        self._check_names(names, result["tests"])
        self._import(result["modules"])
        self._say("running them without mutants")
        if again := list(self._measure(modules)):
            self._say(f"running those of {len(again)} modules again, with what they import at hand")
            list(self._measure(again))

    def run(self, mutants: Iterable[Mutant]) -> Iterator[Verdict]:
        """Yield verdicts in the order in which mutants end. Call `prepare` for their modules first."""
        gc.freeze()  # so that garbage collection in a child does not copy the parent's objects

        def start(mutant: Mutant) -> Child:
            module = mutant.key.module
            return self._child(module, mutant.id, max(self._least, PATIENCE * self._seconds[module]))

        for mutant, ended in _parallel(mutants, start, self._jobs):
            yield Verdict(mutant, *_judged(ended), ended.seconds)

    def _child(self, module: str, identity: str, seconds: float) -> Child:
        source = mutated(module, self._sources[module], identity)
        work = testing.run(self._root, module, source, self._table.tests[module], self._table.left_out)
        return Child(work, seconds, MEMORY)

    def _measure(self, modules: Sequence[str]) -> Iterator[str]:
        """Run each module's tests unchanged, and import here what they load. Yields modules whose tests load much."""
        for module, ended in _parallel(modules, lambda module: self._child(module, "", FIRST_SECONDS), self._jobs):
            result = _passed(ended, f"the tests of {module} do not pass without a mutant")
            if not result["loaded"]:
                raise TableError(f"no test of {module} imports it; change the table")
            self._seconds[module] = ended.seconds
            new = [name for name in result["modules"] if name not in sys.modules and name not in self._tried]
            if len(new) > FEW_MODULES and PATIENCE * ended.seconds > self._least:
                yield module
            self._import(new)

    def _import(self, names: list[str]) -> None:
        """Import these modules, so that children need not; a module that fails to import is left to the children."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                self._tried.add(name)
                if name not in sys.modules:
                    with contextlib.suppress(*UNIMPORTABLE):
                        importlib.import_module(name)
        own = {path.stem for path in self._root.iterdir()} - testing.OWN
        if early := sorted(name for name in sys.modules if name.partition(".")[0] in own):
            raise TableError(f"importing others' modules imported {early[0]}, whose mutants no child would see then")

    def _check_names(self, names: list[str], collected: list[str]) -> None:
        missing = [name for name in names if not any(_is_of(test, name) for test in collected)]
        files = {test.partition("::")[0] for test in collected}
        missing += [
            name
            for name in self._table.left_out
            if name.partition("::")[0] in files and not any(_is_of(test, name) for test in collected)
        ]
        if missing:
            raise TableError(f"there are no tests {', '.join(missing)}; change the table")


def _is_of(test: str, name: str) -> bool:
    """Whether `name`, a folder, a file or a test, contains or is this test."""
    return test == name or (test.startswith(name) and test[len(name)] in "/:[")


def _passed(ended: Ended, otherwise: str) -> dict[str, Any]:
    """The result of a child. Raises TableError, with its output, if it failed."""
    if ended.result is None or ended.result["code"] != 0:
        raise TableError(f"{otherwise}:\n{ended.output}")
    return ended.result


def _judged(ended: Ended) -> tuple[str, str]:
    """The outcome, and the first test that failed; no test if not all tests could be collected."""
    if ended.hung:
        return "hang", ""
    if ended.result is None:  # it crashed, or ran out of memory
        return "killed", ended.output.strip().rpartition("\n")[2]
    return "killed" if ended.result["code"] else "survived", ended.result["failed"]


def _parallel(items: Iterable[T], start: Callable[[T], Child], jobs: int) -> Iterator[tuple[T, Ended]]:
    """Start a child for each item, `jobs` at a time; yields (item, how it ended) in the order in which they end."""
    running: dict[int, tuple[T, Child]] = {}
    poll = select.poll()
    rest = iter(items)
    try:
        while True:
            while len(running) < jobs and (item := next(rest, None)) is not None:
                child = start(item)
                running[child.handle] = item, child
                poll.register(child.handle, select.POLLIN)
            if not running:
                return
            for handle, _ in poll.poll():
                poll.unregister(handle)
                item, child = running.pop(handle)
                yield item, child.ended()
    finally:
        for _, child in running.values():
            child.kill()
