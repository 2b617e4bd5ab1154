"""Publications that wait for the GPU: a thread polls for their completion, and the caller never waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from kvmarket import counters
from kvmarket.support.supervised import survived
from kvmarket.support.threads import started

POLL_SECONDS = 0.0005


class Pending:
    """Runs `commit` of each publication as soon as its `ready` is true, in the order in which they were added.

    The first publication starts the thread. Thread-safe.
    """

    def __init__(self) -> None:
        """Start with nothing pending and no thread."""
        self._queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, ready: Callable[[], bool], commit: Callable[[], None]) -> None:
        """Queue a publication; `ready` and `commit` run on the polling thread.

        If either raises, only this publication is dropped, and counted. After `close` this does nothing.
        """
        with self._changed:
            if self._closed:
                return
            self._queue.append((ready, commit))
            if self._thread is None:
                self._thread = started(self._run, "kvmarket-pending", "offer_delayed")
            self._changed.notify()

    def close(self) -> None:
        """Drop the pending publications, which are then never offered, and end the thread. May be called twice."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (commit := self._next()) is not None:
            with survived("offering what the GPU has completed") as turn:
                commit()
            if turn.failed:
                counters.add("offer_dropped", reason="offering it failed")
            del commit  # frees what it refers to, while nothing is pending

    def _next(self) -> Callable[[], None] | None:
        """Wait until the first publication is complete; return its `commit`. None when the queue is closed."""
        while True:
            with self._changed:
                if self._closed:
                    return None
                if not self._queue:
                    self._changed.wait()
                    continue
                ready, commit = self._queue[0]
                with survived("polling the GPU") as turn:
                    if not ready():
                        self._changed.wait(POLL_SECONDS)
                        continue
                if self._queue and self._queue[0][1] is commit:
                    self._queue.popleft()
            if turn.failed:
                counters.add("offer_dropped", reason="its completion cannot be polled")
                return _nothing
            return commit


def _nothing() -> None:
    """Replaces the `commit` of a publication that failed."""
