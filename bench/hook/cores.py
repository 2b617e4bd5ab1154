"""The cores of a rented machine: they change speed by half, for a second or for minutes, as their neighbours work."""

from __future__ import annotations

import os
import time

CORES = 4  # of which a thread takes one
NEARLY = 1.2  # of the least time
LOOPS, NUMBERS = 2, list(range(1000, 51_000))  # objects in 1.6 MB: neighbours take caches away too


class Cores:
    """Finds the fastest cores, and waits for them while all are slow: `patience` seconds at most, in all."""

    def __init__(self, patience: float) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._patience, self.waited = patience, 0.0
        self._best = min(map(_seconds_on, self._cores))
        os.sched_setaffinity(0, self._cores)

    def fastest(self) -> list[int]:
        """CORES that are fast now, nearly as fast as any ever was if that comes in time. Costs 1 ms a core."""
        start = time.monotonic()
        while True:
            times = {core: _seconds_on(core) for core in self._cores}
            os.sched_setaffinity(0, self._cores)
            found = sorted(times, key=lambda core: times[core])[:CORES]
            self._best = min(self._best, times[found[0]])
            if times[found[-1]] <= NEARLY * self._best or self.waited + time.monotonic() - start > self._patience:
                self.waited += time.monotonic() - start
                return found
            time.sleep(0.1)


def _seconds_on(core: int) -> float:
    """How long summing NUMBERS takes on this core at best, some 0.5 ms; the calling thread stays there."""
    os.sched_setaffinity(0, {core})
    best = float("inf")
    for _ in range(LOOPS):
        start = time.perf_counter()
        sum(NUMBERS)
        best = min(best, time.perf_counter() - start)
    return best
