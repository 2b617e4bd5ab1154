"""Command line and environment of Python processes that this process starts.

A child can import the same modules as this process. ``-m``, ``-c`` and the interactive prompt put the current directory
first in ``sys.path``: a file ``uuid.py`` or ``numpy.py`` that lies there by chance would hide the real module. So the
child does not import from the current directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Nothing is imported before the current directory has been removed from the path. The package is then loaded from the
# place where this process found it (even if that is the current directory, or an archive), and its submodules too.
_BOOTSTRAP = """\
import sys; sys.path[:] = filter(None, sys.path)
import runpy; from importlib import machinery, util
spec = machinery.PathFinder.find_spec("kvmarket", [sys.argv[1]])
sys.modules["kvmarket"] = package = util.module_from_spec(spec); spec.loader.exec_module(package)
del sys.argv[:2]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_DEPENDENCIES = ("msgspec", "numpy", "prometheus_client", "pynvml", "rich", "torch", "triton", "typer", "xxhash")


def command(module: str, *arguments: str) -> list[str]:
    """Command line that runs a module of kvmarket as ``python -m module`` would; start it with `environment`."""
    return [sys.executable, "-c", _BOOTSTRAP, str(Path(__file__).absolute().parents[1]), module, *arguments]


def environment() -> dict[str, str]:
    """This process' environment variables, with PYTHONPATH set to `search_path`: for a child that runs our code."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search_path())}


def search_path() -> list[str]:
    """``sys.path`` with absolute entries, and without the current directory unless PYTHONPATH names it.

    If a package that kvmarket needs was loaded from the current directory, the current directory comes last.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current directory was removed, so relative entries mean nothing
        return [entry for entry in sys.path if Path(entry).is_absolute()]
    named = [here / entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    entries = [here / entry for entry in sys.path if entry]
    if here not in named:
        entries = [entry for entry in entries if entry != here] + [here] * _needed(here)
    return [str(entry) for entry in entries]


def _needed(directory: Path) -> bool:
    """Whether a package that kvmarket needs was loaded from `directory`."""
    for name in _DEPENDENCIES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and directory == (Path(file).parents[1] if Path(file).stem == "__init__" else Path(file).parent):
            return True
    return False
