"""What a child does: run the tests of one module by pytest, with or without a mutant, and say what came of it."""

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
    """A plugin of pytest that notes what pytest ended with, which tests there were, and the first that failed."""

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
    """Work that collects these tests of the tree at `root`.

    Its result: `code` of pytest, all `tests`, and the `modules` loaded from elsewhere.
    """

    def work(folder: Path) -> dict[str, Any]:
        watch = _pytest(root, folder, ["--collect-only", *names])
        return {"code": watch.code, "tests": watch.tests, "modules": foreign(root)}

    return work


def run(root: Path, path: str, source: str, names: Sequence[str], left_out: Iterable[str]) -> Work:
    """Work that runs these tests, with the module at `path` made of `source`, until the first fails.

    The result: `code` of pytest, the first test that `failed`, whether the
    module was `loaded`, and the `modules` loaded from elsewhere.
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
    """The loaded modules that are no part of the tree at `root`, in the order in which they were first imported."""
    own = OWN | {path.stem for path in root.iterdir()}
    return [name for name in list(sys.modules) if name.partition(".")[0] not in own]


def _module(path: str) -> str:
    """The dotted name of the module at `path`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _pytest(root: Path, folder: Path, arguments: Sequence[str]) -> _Watch:
    """Run pytest once, in a world of this process' own."""
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
    phases = (Phase.explicit, Phase.generate)  # a failure is not looked at by anybody, so it need not be small
    settings.register_profile("mutants", phases=phases, database=None, deadline=None, derandomize=True)
    settings.load_profile("mutants")
