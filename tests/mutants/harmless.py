"""The list of survivors that are known to be harmless, each with the reason in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.mutants.mutant import Key
from tests.mutants.table import TableError

Reasons = dict[Key, str]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One survivor, with the fields of its `mutant.Key`, and the reason why no test needs to notice it."""

    module: str
    operator: str
    statement: str
    becomes: str
    reason: str
    function: str = ""
    which: int = 1

    @property
    def key(self) -> Key:
        """The key of the mutant."""
        return Key(self.module, self.function, self.operator, self.statement, self.becomes, self.which)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: entries in any order."""

    harmless: list[Entry] = []


def read(path: Path) -> dict[Key, str]:
    """The reasons by mutant. Raises TableError for double entries, missing reasons, and what does not decode."""
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=File)
    except msgspec.DecodeError as error:
        raise TableError(f"{path}: {error}") from error
    reasons: dict[Key, str] = {}
    for entry in file.harmless:
        if entry.key in reasons:
            raise TableError(f"{path} has {entry.key} twice; take one out")
        if not entry.reason.strip():
            raise TableError(f"{path} does not say why {entry.key} is harmless; give a reason, or write a test")
        reasons[entry.key] = entry.reason
    return reasons


def stale(reasons: Iterable[Key], existing: Iterable[Key]) -> list[Key]:
    """The entries whose mutants the code no longer has."""
    return sorted(set(reasons) - set(existing))


def entry(key: Key, reason: str = "") -> str:
    """The mutant as an entry of harmless.toml."""
    fields = {name: value for name, value in key._asdict().items() if value not in ("", 1)} | {"reason": reason}
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    return "\n".join(("[[harmless]]", *lines))
