"""Pools that an engine passes over: for good where it cannot read them, else until it tries them again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

AT_ONCE = 2  # failures after which a pool is tried again at once
SHORTEST, LONGEST = 0.1, 3.2  # seconds between later tries: doubled with each failure
FORGIVEN = 10.0  # seconds without a failure after which the next one counts as the first


class _Failures(NamedTuple):
    times: int
    last: float  # when, and until when the pool is passed over
    until: float


class Avoided:
    """Which pools are passed over now. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """None yet. `clock` tells seconds."""
        self._clock = clock
        self._turn = threading.Lock()
        self._for_good: set[str] = set()
        self._failures: dict[str, _Failures] = {}
        self._now: frozenset[str] = frozenset()
        self._changes_at = float("inf")

    def for_good(self, pool: str) -> None:
        """Pass over `pool` until it is forgotten."""
        with self._turn:
            self._for_good.add(pool)
            self._compute()

    def for_now(self, pool: str) -> None:
        """`pool` could not be read for a moment: pass over it for a while that grows with each failure."""
        with self._turn:
            now = self._clock()
            known = self._failures.get(pool)
            times = known.times + 1 if known is not None and now - known.last < FORGIVEN else 1
            pause = min(SHORTEST * 2.0 ** (times - AT_ONCE - 1), LONGEST) if times > AT_ONCE else 0.0
            self._failures[pool] = _Failures(times, now, now + pause)
            self._compute()

    def now(self) -> Collection[str]:
        """The pools to pass over at this moment: do not change the result. Costs less than 1 us."""
        if self._failures and self._clock() >= self._changes_at:
            with self._turn:
                self._compute()
        return self._now

    def forget(self, pools: Iterable[str]) -> None:
        """These pools are gone."""
        with self._turn:
            for pool in pools:
                self._for_good.discard(pool)
                self._failures.pop(pool, None)
            self._compute()

    def _compute(self) -> None:
        now = self._clock()
        resting = {pool: each.until for pool, each in self._failures.items() if each.until > now}
        self._changes_at = min(resting.values(), default=float("inf"))
        self._now = frozenset(self._for_good | resting.keys())
