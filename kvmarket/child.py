"""Other Python processes of ours: they import what this one can, and nothing that only lies in the current directory.

``-m``, ``-c`` and the prompt put the current directory first in ``sys.path``. A file ``uuid.py`` or ``numpy.py`` that
lies there by chance would take the place of the module that is meant.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Nothing is imported before the path is clean. The package is then loaded from where this process has it, which may be
# the current directory after all, or an archive; its submodules follow from there.
_BOOTSTRAP = """\
import sys; sys.path[:] = filter(None, sys.path)
import runpy; from importlib import machinery, util
spec = machinery.PathFinder.find_spec("kvmarket", [sys.argv[1]])
sys.modules["kvmarket"] = package = util.module_from_spec(spec); spec.loader.exec_module(package)
del sys.argv[:2]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_DEPENDENCIES = ("msgspec", "numpy", "prometheus_client", "pynvml", "rich", "torch", "triton", "typer", "xxhash")


def command(module: str, *arguments: str) -> list[str]:
    """Command line that runs a module of kvmarket as ``python -m module`` would; it needs `environment`."""
    return [sys.executable, "-c", _BOOTSTRAP, str(Path(__file__).absolute().parents[1]), module, *arguments]


def environment() -> dict[str, str]:
    """This process' environment, with its `search_path` for whoever runs our code in a process of its own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search_path())}


def search_path() -> list[str]:
    """``sys.path`` with absolute entries, and without the current directory unless PYTHONPATH names it.

    The current directory comes last, instead, where a package that kvmarket needs was loaded from it.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed, and whatever was meant by it too
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
