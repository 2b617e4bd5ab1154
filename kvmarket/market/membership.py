"""The resources of one market: both halves, threads and memory. `close` frees them, or the end of the last reference.

At the end of the process all markets that are still joined are closed.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from kvmarket import counters
from kvmarket.bounds import check_size
from kvmarket.errors import ClosedError
from kvmarket.fingerprint import Fingerprint
from kvmarket.layout.paged import PagedCache
from kvmarket.market.control import ControlHalf
from kvmarket.market.data import DataHalf
from kvmarket.market.mappings import register_own, unregister_own
from kvmarket.market.offer import Stage
from kvmarket.market.pending import Pending
from kvmarket.pool import StagingPool
from kvmarket.pool.owners import acquire
from kvmarket.support.supervised import survived

DROP_SECONDS = 0.5  # the thread that drops a market waits so long for the market to be closed

_memberships: set[Membership] = set()  # those that are not closed


class Membership:
    """The halves of a market, its staging pool and its pending publications. No part refers to the `Market` itself."""

    def __init__(
        self,
        cache: PagedCache,
        fingerprint: Fingerprint,
        tenant: str,
        staging_bytes: int,
        address: str | os.PathLike[str] | None,
        programs: int | None,
    ) -> None:
        """Export `cache` and join the market; see `Market` for arguments and errors."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._left = False
        self._over = threading.Event()
        self.pending = Pending()
        self.staging = StagingPool(cache, staging_bytes) if staging_bytes else None
        if self.staging:
            check_size(self.staging.slots.layout)
        self.data = DataHalf(cache, programs=programs)
        with ExitStack() as undo:
            undo.callback(self.data.close)
            self.landings = acquire(cache)
            self.control = ControlHalf(
                [Stage(cache.layout, (self.data.memory,))],
                fingerprint,
                tenant,
                address,
                self._staging_stages(),
                self.landings.generations,
                on_gone=self.data.forget,
                on_far=self.data.map_ahead,
            )
            undo.pop_all()
        self.data.mappings.on_unreachable = self.control.avoid
        self.data.mappings.on_scarce = self._rest
        register_own(self.control.pool.id, self.data.slots)
        if self.staging and self.control.staging:
            register_own(self.control.staging.id, self.staging.slots)
        _memberships.add(self)

    def check(self) -> None:
        """Raise ClosedError if this market was closed, and in a fork of its process."""
        if self._left:
            raise ClosedError("this market is closed; connect again")
        if self._pid != os.getpid():
            raise ClosedError(f"this market belongs to process {self._pid}, which forked; connect in this process")

    def close(self) -> None:
        """Leave the market.

        First drops pending publications, then makes all offers dead and takes them down, then waits for the copies
        under way and drops the mappings. May be called twice, and from several threads. Does nothing in a fork.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._left:
                return
            self._left = True
            self.pending.close()
            for pool in (self.control.pool, self.control.staging):
                if pool is not None:
                    unregister_own(pool.id)
            self.control.close()
            self.data.close()
            _memberships.discard(self)
            self._over.set()

    def leave_with(self, market: object) -> None:
        """Arrange that this is closed when `market` is freed without `close`, which is counted.

        The garbage collector may free it in the middle of any call. So a new thread closes it, and the thread that
        freed it waits for up to `DROP_SECONDS`.
        """
        weakref.finalize(market, _drop, self).atexit = False

    def wait_over(self, seconds: float) -> None:
        """Wait until the market is closed, at most `seconds`."""
        self._over.wait(seconds)

    @property
    def over(self) -> bool:
        """Whether the market is closed, or belongs to the process that this one was forked from."""
        return self._over.is_set() or os.getpid() != self._pid

    def _staging_stages(self) -> Sequence[Stage] | None:
        return [Stage(self.staging.slots.layout, (self.staging.memory,))] if self.staging else None

    def _rest(self, pool: str) -> None:
        self.control.avoid(pool, for_now=True)


def _drop(membership: Membership) -> None:
    if membership.over:
        return

    def leave() -> None:
        with survived("leaving a market that was dropped"):
            counters.add("market_dropped", reason="without close(): call that, or use the market in a with statement")
            membership.close()

    with suppress(RuntimeError):  # no thread can be started: `_leave_all` closes it at the end of the process
        _thread.start_new_thread(leave, ())  # `threading` would take locks that this thread may already hold
        membership.wait_over(DROP_SECONDS)


@atexit.register
def _leave_all() -> None:
    """Close every market that is still joined, at the end of the process."""
    for membership in list(_memberships):
        membership.close()
