"""The one place where any exception is caught: vLLM kills the engine for an exception in a connector."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from kvmarket import counters

_log = logging.getLogger("vllm.kvmarket")
_SHOWN = 5  # tracebacks per process; all are counted


class Guard:
    """A context that no exception leaves: `failed` is called with the reason first, then it is counted and logged.

    `failed` itself is not guarded: an engine that cannot take its offers down must not go on.
    """

    shown = 0

    def __init__(self, where: str, failed: Callable[[str], None]) -> None:
        self._where = where
        self._failed = failed
        self.error: Exception | None = None  # what was raised, for `failed` to look at

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = error
        reason = f"{self._where}: {type(error).__name__}"
        self._failed(reason)
        counters.add("vllm_hook_failed", reason=reason)
        if Guard.shown < _SHOWN:
            Guard.shown += 1
            _log.error("kvmarket failed in %s and goes on without it", self._where, exc_info=error)
        return True


def unconcerned(reason: str) -> None:
    """What `failed` does where nothing has to be closed."""
