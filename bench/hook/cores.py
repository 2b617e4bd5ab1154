"""Finds fast cores on a rented machine, where the load of other tenants changes a core's speed by up to half."""

from __future__ import annotations

import os
import time

CORES = 4  # that are returned; a thread runs on one of them
NEARLY = 1.2  # a core is fast when it takes at most so many times the least time
LOOPS, NUMBERS = 2, list(range(1000, 51_000))  # 1.6 MB of objects: other tenants take cache space too


class Cores:
    """Finds the fastest cores, and waits while too few are fast: `patience` seconds at most over all calls."""

    def __init__(self, patience: float) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._patience, self.waited = patience, 0.0
        self._best = min(map(_seconds_on, self._cores))
        os.sched_setaffinity(0, self._cores)

    def fastest(self) -> list[int]:
        """The CORES fastest cores now. Waits until all are within NEARLY of the best time so far. Costs 1 ms a core."""
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
    """The least time to sum NUMBERS on this core, some 0.5 ms; leaves the calling thread on that core."""
    os.sched_setaffinity(0, {core})
    best = float("inf")
    for _ in range(LOOPS):
        start = time.perf_counter()
        sum(NUMBERS)
        best = min(best, time.perf_counter() - start)
    return best
