"""Pools that `match` or `fetch` must skip: for good if this engine cannot read them, else for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

AT_ONCE = 2  # so many failures are followed by another try at once
SHORTEST, LONGEST = 0.1, 3.2  # seconds between later tries: doubled with each failure
FORGIVEN = 10.0  # after so many seconds without a failure the next one counts as the first


class _Failures(NamedTuple):
    times: int
    last: float  # time of the last one
    until: float  # time until which the pool is skipped


class Avoided:
    """The set of pools to skip now. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no pools. `clock` returns seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._for_good: set[str] = set()
        self._failures: dict[str, _Failures] = {}
        self._now: frozenset[str] = frozenset()
        self._changes_at = float("inf")

    def for_good(self, pool: str) -> None:
        """Skip `pool` until `forget`."""
        with self._lock:
            self._for_good.add(pool)
            self._compute()

    def for_now(self, pool: str) -> None:
        """Note a transient failure to read `pool`. From the third one on, skip it for a time that doubles each time."""
        with self._lock:
            now = self._clock()
            known = self._failures.get(pool)
            times = known.times + 1 if known is not None and now - known.last < FORGIVEN else 1
            pause = min(SHORTEST * 2.0 ** (times - AT_ONCE - 1), LONGEST) if times > AT_ONCE else 0.0
            self._failures[pool] = _Failures(times, now, now + pause)
            self._compute()

    def now(self) -> Collection[str]:
        """The pools to skip at this moment. Costs less than 1 us. Do not change the result."""
        if self._failures and self._clock() >= self._changes_at:
            with self._lock:
                self._compute()
        return self._now

    def forget(self, pools: Iterable[str]) -> None:
        """Forget all about these pools: they have left the market."""
        with self._lock:
            for pool in pools:
                self._for_good.discard(pool)
                self._failures.pop(pool, None)
            self._compute()

    def _compute(self) -> None:
        now = self._clock()
        resting = {pool: each.until for pool, each in self._failures.items() if each.until > now}
        self._changes_at = min(resting.values(), default=float("inf"))
        self._now = frozenset(self._for_good | resting.keys())
