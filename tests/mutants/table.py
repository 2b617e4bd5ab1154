"""The table of targets.toml: the modules to mutate, and the tests that should notice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec


class TableError(Exception):
    """The table and the tree of sources do not match."""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tests`: by module its tests, as pytest names them. `left_out`: by test that is never run the reason."""

    tests: dict[str, tuple[str, ...]]
    left_out: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path, root: Path) -> Table:
        """Read the table from a file with paths relative to `root`. Raises TableError for a path without a file."""
        try:
            table = msgspec.toml.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise TableError(f"{path}: {error}") from error
        missing = [module for module in table.tests if not (root / module).is_file()]
        named = {test for tests in table.tests.values() for test in tests} | set(table.left_out)
        missing += sorted(test for test in named if not (root / test.partition("::")[0]).exists())
        if missing:
            raise TableError(f"{path} names what {root} does not have: {', '.join(missing)}; change the table")
        if empty := [module for module, tests in table.tests.items() if not tests]:
            raise TableError(f"{path} names no tests of {', '.join(empty)}; name some, or take the module out")
        return table


def changed_lines(root: Path, revision: str) -> dict[str, set[int]]:
    """The lines of the working tree that differ from `revision`, by path. Raises TableError if git fails."""
    command = ["git", "diff", "--unified=0", "--no-color", "--no-ext-diff", "--relative", revision, "--"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if run.returncode:
        raise TableError(f"git does not know what changed since {revision}: {run.stderr.strip()}")
    changed: dict[str, set[int]] = {}
    path = ""
    for line in run.stdout.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ ").removeprefix("b/")
        elif line.startswith("@@ "):
            start, _, count = line.split()[2].removeprefix("+").partition(",")
            changed.setdefault(path, set()).update(range(int(start), int(start) + int(count or 1)))
    return changed
