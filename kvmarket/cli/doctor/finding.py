"""The result of one check of the doctor."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """The result of one check; `advice` is empty if nothing needs to be done."""

    what: str
    level: str  # "ok", "note" or "bad"
    found: str
    advice: str = ""
