"""The one place of the hook that catches every exception: vLLM stops the engine when a connector raises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from kvmarket import counters

_log = logging.getLogger("vllm.kvmarket")
_SHOWN = 5  # tracebacks logged per process; every exception is counted


class Guard:
    """A context manager that catches every `Exception`: it calls `failed` with the reason, then counts and logs it.

    What `failed` raises is not caught: an engine that cannot take its offers down must not go on.
    """

    shown = 0

    def __init__(self, where: str, failed: Callable[[str], None]) -> None:
        self._where = where
        self._failed = failed
        self.error: Exception | None = None  # the caught exception; `failed` may read it

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


def nothing_to_close(reason: str) -> None:
    """A `failed` that does nothing: for callers that have nothing to close."""
