"""Counters of this process: every fallback has a name, a reason and a count, so that none is silent."""

from __future__ import annotations

import logging
import threading

_log = logging.getLogger("kvmarket")
_lock = threading.Lock()
_counts: dict[str, int] = {}


def add(name: str, n: int = 1, reason: str = "", detail: object = "") -> None:
    """Add `n` to counter `name`, or to `name{reason}`; log each reason once, when it is first counted.

    Each reason is a counter of its own, so it must be one of few. `detail` may differ every time: only the log shows
    it. Thread-safe. Costs about 1 us.
    """
    key = f"{name}{{{reason}}}" if reason else name
    with _lock:
        first = key not in _counts
        _counts[key] = _counts.get(key, 0) + n
    if first and reason:
        said = f"{reason}: {detail}" if detail else reason
        _log.warning("%s: %s (counted from now on, logged once)", name, said)


def snapshot() -> dict[str, int]:
    """Every counter of this process and its value: a copy, owned by the caller."""
    with _lock:
        return dict(_counts)
