"""The one place of the library where any exception is caught: a thread of ours outlives whatever its work raises."""

from __future__ import annotations

import logging
from types import TracebackType

from kvmarket import counters

_log = logging.getLogger("kvmarket")
_SHOWN = 5  # tracebacks per process; all exceptions are counted


class Survived:
    """A context that no `Exception` leaves: it is counted and logged. `failed` says afterwards whether there was one.

    What ends a process, as KeyboardInterrupt does, passes through.
    """

    shown = 0
    failed = False

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> Survived:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        counters.add("thread_survived", reason=f"{self._where}: {type(error).__name__}", detail=error)
        if Survived.shown < _SHOWN:
            Survived.shown += 1
            _log.error("kvmarket failed in %s and goes on", self._where, exc_info=error)
        return True


def survived(where: str) -> Survived:
    """A context for one piece of a thread's work, named `where` in the counter ``thread_survived``.

    A loop that is run again at once after a failure would use a whole core: pause where `failed` is true.
    """
    return Survived(where)
