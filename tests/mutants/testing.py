"""The work of a child: runs the tests of one module by pytest, with or without a mutant, and returns the outcome."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

STARTUP = Path(__file__).parent / "startup"
OWN = {"tests", "conftest", "__main__", "sitecustomize"}
Work = Callable[[Path], dict[str, Any]]
NOT_RUN = "not slow and not gpu and not gpu2"


class _Watch:
    """A pytest plugin that notes pytest's exit code, the collected tests, and the first failed test."""

    def __init__(self) -> None:
        self.code = 0
        self.tests: list[str] = []
        self.failed = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tests = [item.nodeid for item in session.items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def collect(root: Path, names: Sequence[str]) -> Work:
    """Make work that collects these tests of the tree at `root`.

    Its result: pytest's `code`, all `tests`, and the loaded `modules` of other projects.
    """

    def work(folder: Path) -> dict[str, Any]:
        watch = _pytest(root, folder, ["--collect-only", *names])
        return {"code": watch.code, "tests": watch.tests, "modules": foreign(root)}

    return work


def run(root: Path, path: str, source: str, names: Sequence[str], left_out: Iterable[str]) -> Work:
    """Make work that runs these tests, with the module at `path` loaded from `source`, until the first one fails.

    Its result: pytest's `code`, the first test that `failed`, whether the module was `loaded`, and the loaded `modules`
    of other projects.
    """

    def work(folder: Path) -> dict[str, Any]:
        from tests.mutants.startup import sitecustomize

        file = folder / Path(path).name
        file.write_text(source, encoding="utf-8")
        os.environ[sitecustomize.VARIABLE] = "\n".join((_module(path), str(file), str(root / path)))
        sitecustomize.install()
        watch = _pytest(root, folder, [*(f"--deselect={test}" for test in left_out), *names])
        loaded = bool(sitecustomize.loaded)
        return {"code": watch.code, "failed": watch.failed, "loaded": loaded, "modules": foreign(root)}

    return work


def foreign(root: Path) -> list[str]:
    """The loaded modules that are not from the tree at `root`, in the order of their first import."""
    own = OWN | {path.stem for path in root.iterdir()}
    return [name for name in list(sys.modules) if name.partition(".")[0] not in own]


def _module(path: str) -> str:
    """The dotted name of the module at `path`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _pytest(root: Path, folder: Path, arguments: Sequence[str]) -> _Watch:
    """Run pytest once, with temporary files and markets of this process's own."""
    _settle(root, folder)
    watch = _Watch()
    always = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--tb=short", "-m", NOT_RUN]
    always += [f"--rootdir={root}", f"--basetemp={folder / 'pytest'}"]
    watch.code = int(pytest.main([*always, *arguments], plugins=[watch]))
    return watch


def _settle(root: Path, folder: Path) -> None:
    """Give this process temporary files and markets of its own, and the same examples of hypothesis each time."""
    from hypothesis import Phase, settings

    os.chdir(root)
    sys.path[:] = [str(root), *(entry for entry in sys.path if entry not in ("", str(root)))]
    sys.path.insert(1, str(STARTUP))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    os.environ.pop("KVMARKET_ADDRESS", None)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    phases = (Phase.explicit, Phase.generate)  # nobody looks at a failure, so it is not shrunk
    settings.register_profile("mutants", phases=phases, database=None, deadline=None, derandomize=True)
    settings.load_profile("mutants")
