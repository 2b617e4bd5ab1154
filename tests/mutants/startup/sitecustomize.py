"""Loads a mutant in place of its module. Python imports this file at its start if this folder is on its path.

The variable ``KVMARKET_MUTANT`` has three lines: the module's name, the file of the mutated source, its own file.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import warnings
from pathlib import Path

VARIABLE = "KVMARKET_MUTANT"
loaded: list[str] = []  # the mutated module's name, once it is loaded in this process


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads the mutated source; the module's ``__file__`` is that of the module."""

    def __init__(self, name: str, path: str, mutated: str) -> None:
        super().__init__(name, path)
        self._mutated = mutated

    def get_code(self, fullname: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(Path(self._mutated).read_bytes(), self._mutated, "exec", dont_inherit=True)
        loaded.append(fullname)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, mutated: str, path: str) -> None:
        self._name, self._mutated, self._path = name, mutated, path

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(
            fullname, self._path, loader=_Loader(fullname, self._path, self._mutated)
        )


def install() -> None:
    """Have the module in the variable loaded from its mutated source; without the variable do nothing."""
    if said := os.environ.get(VARIABLE):
        sys.meta_path.insert(0, _Finder(*said.split("\n")))


install()
