"""Work of the scheduler side that nobody waits for, kept until the scheduling thread would have nothing else to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PATIENCE = 4  # times that deferred work waits; a load that lands while nothing is computed has it wait three times


class DeferredWork:
    """A queue of calls, done in order. Whoever adds one must run them before anything that relies on its effect."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._passed = 0  # times in a row that they were to wait

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, chore: Callable[[], object]) -> None:
        """Keep `chore` for later."""
        self._queue.append(chore)

    def may_wait(self, busy: bool) -> bool:
        """Whether they may wait while the thread is `busy`: not for ever, where it always is when it is asked."""
        self._passed = self._passed + 1 if busy else 0
        return busy and self._passed <= PATIENCE

    def run(self) -> None:
        """Do all of them now. One that raises is not done again; those behind it stay."""
        self._passed = 0
        while self._queue:
            self._queue.popleft()()

    def clear(self) -> None:
        """Forget all of them."""
        self._queue.clear()
