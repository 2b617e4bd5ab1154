"""The only place of the library that catches every exception, so that a background thread survives its failures."""

from __future__ import annotations

import logging
from types import TracebackType

from kvmarket import counters

_log = logging.getLogger("kvmarket")
_SHOWN = 5  # tracebacks per process; all exceptions are counted


class Survived:
    """A context manager that counts, logs and suppresses every `Exception`. `failed` is true if there was one.

    Exceptions that end a process, such as KeyboardInterrupt, are not suppressed.
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
    """A context manager for one piece of a thread's work; the counter ``thread_survived`` names it `where`.

    A loop that repeats at once after a failure would use a whole core: pause if `failed` is true.
    """
    return Survived(where)
