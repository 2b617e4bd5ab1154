"""Deferred work of the scheduler side: done when the scheduling thread has nothing more urgent to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PATIENCE = 4  # times in a row that deferred work may wait; a load that ends while no step computes uses three


class DeferredWork:
    """A queue of calls, run in order. A caller that relies on the effect of a call must call `run` first."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._passed = 0  # times in a row that `may_wait` was asked while the thread was busy

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, call: Callable[[], object]) -> None:
        """Append `call`."""
        self._queue.append(call)

    def may_wait(self, busy: bool) -> bool:
        """Whether the calls may wait: while the thread is `busy`, but `PATIENCE` times in a row at most."""
        self._passed = self._passed + 1 if busy else 0
        return busy and self._passed <= PATIENCE

    def run(self) -> None:
        """Run all calls now. A call that raises is removed; the calls after it stay in the queue."""
        self._passed = 0
        while self._queue:
            self._queue.popleft()()

    def clear(self) -> None:
        """Drop all calls; none is run."""
        self._queue.clear()
