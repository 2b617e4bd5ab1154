"""What the doctor says about one thing that it looked at."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; `advice` is empty when nothing needs doing."""

    what: str
    level: str  # "ok", "note" or "bad"
    found: str
    advice: str = ""
