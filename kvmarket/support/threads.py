"""Threads that are started when they are needed, on a machine that may have none left."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvmarket import counters


def started(run: Callable[[], None], name: str, delayed: str) -> threading.Thread | None:
    """A daemon thread of this name that runs `run`.

    None where none is to be had for a moment, counted as `delayed`: whoever needs it calls again later.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        counters.add(delayed, reason=str(error))
        return None
    return thread
