"""Work of the scheduler side that nobody waits for, kept until the scheduling thread would have nothing else to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Chores:
    """A queue of calls, done in order. Whoever adds one must run them before anything that relies on its effect."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, chore: Callable[[], object]) -> None:
        """Keep `chore` for later."""
        self._queue.append(chore)

    def run(self) -> None:
        """Do all of them now. One that raises is not done again; those behind it stay."""
        while self._queue:
            self._queue.popleft()()

    def clear(self) -> None:
        """Forget all of them."""
        self._queue.clear()
