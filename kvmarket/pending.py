"""Publications that wait for the GPU: polled by a thread of their own, never waited for by the caller."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from kvmarket import counters

POLL_SECONDS = 0.0005


class Pending:
    """Runs `commit` of each publication as soon as its `ready` is true, in the order given.

    The thread starts with the first one.
    """

    def __init__(self) -> None:
        """Nothing pending, no thread."""
        self._queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, ready: Callable[[], bool], commit: Callable[[], None]) -> None:
        """Queue a publication; `commit` runs on the polling thread and must not raise."""
        with self._changed:
            self._queue.append((ready, commit))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvmarket-pending", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Drop what is pending: it is never offered. May be called twice."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                if not self._queue:
                    self._changed.wait()
                    continue
                ready, commit = self._queue[0]
                try:
                    if not ready():
                        self._changed.wait(POLL_SECONDS)
                        continue
                except RuntimeError as error:
                    counters.add("offer_dropped", reason=f"its completion cannot be polled: {error}")
                    commit = _nothing
                self._queue.popleft()
            commit()


def _nothing() -> None:
    """In place of a publication that failed."""
