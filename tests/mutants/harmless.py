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
    """One survivor, by what names it (see `mutant.Key`), and why no test needs to notice it."""

    module: str
    operator: str
    statement: str
    becomes: str
    reason: str
    function: str = ""
    which: int = 1

    @property
    def key(self) -> Key:
        """What names the mutant."""
        return Key(self.module, self.function, self.operator, self.statement, self.becomes, self.which)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: entries in any order."""

    harmless: list[Entry] = []


def read(path: Path) -> dict[Key, str]:
    """The reason by mutant. Raises TableError for an entry that is there twice, has no reason, or is no entry."""
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
    """Entries for mutants that the code has no more."""
    return sorted(set(reasons) - set(existing))


def entry(key: Key, reason: str = "") -> str:
    """The mutant as harmless.toml names it."""
    fields = {name: value for name, value in key._asdict().items() if value not in ("", 1)} | {"reason": reason}
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    return "\n".join(("[[harmless]]", *lines))
