"""An engine's membership of a market, with a replica of what the service knows: a match asks nobody.

A thread of the market's own puts the stream into the replica as it comes, in turns so short that who matches meanwhile
waits some 0.6 ms at most: news comes while the engine's own thread waits for its GPU, and costs that thread nothing.
An engine that never waits leaves it a turn every 5 ms, Python's switch interval: the longer the replica is behind, the
longer are the turns, up to 5 ms too.
When the service dies, this thread starts it anew, joins again and calls `on_rejoin`, so that the engine can offer what
it still holds; the old replica answers until then.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Sequence

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.registry.address import Address
from kvmarket.registry.line import join_service
from kvmarket.registry.messages import Join, News, PoolRecord, Promise, Retire, Settle, pack_message
from kvmarket.registry.offering import Offering
from kvmarket.registry.standing import Run
from kvmarket.registry.tokens import Int32s, Int64s

TURN_SECONDS = 500e-6  # so long at a time the watching thread holds the replica: what comes at once goes in at once
TURN_SHARE, LONGEST_TURN = 0.05, 5e-3  # of the time that the replica has been behind; at most so long
DRAIN_SECONDS = 0.002  # at most some so long a match puts into the replica what is not in it yet
NAP_SECONDS = 20e-6  # in which others get their turn
WATCH_SECONDS = 0.1
AGAIN_SECONDS, LONGEST_AGAIN = 1.0, 60.0  # before all is offered again: doubled each time that some is missed again


class Client:
    """One engine's membership of a market. Methods may be called from any thread."""

    def __init__(
        self,
        address: Address,
        join: Join,
        on_gone: Callable[[Sequence[str]], None],
        on_rejoin: Callable[[], None],
        finds_own: bool = True,
    ) -> None:
        """Join the market at `address`, starting its service if nobody has; know all that it knows.

        `finds_own`: whether `match` finds what this engine itself offers, which is put into its replica for that. Both
        callbacks run on the watching thread: `on_gone` hears of pools that have gone,
        `on_rejoin` is called when all that stands must be offered again. Raises VersionError, AddressError,
        LayoutError, NamespaceError or RefusedError, each with what to do.
        """
        self._address, self._join = address, join
        self._on_gone, self._on_rejoin = on_gone, on_rejoin
        self._finds_own = finds_own
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._gone: list[str] = []
        self._behind_since: float | None = None
        self._line = join_service(address, join, self._closing)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="kvmarket-watch", daemon=True)
        self._thread.start()

    def offer(self, offering: Offering) -> bool:
        """Offer these blocks; its arrays are copied.

        Never waits; False, and counted, if the service is away or does not keep up: what goes on from it is refused
        then, and `on_rejoin` called. Costs 10 us and 1 us a KiB.
        """
        return self._tell(offering.message())

    def retire(self, pool: str, slots: Int64s | None) -> bool:
        """Take the offers of these slots down, of the whole pool when None. As `offer`."""
        return self._tell(Retire(pool, None if slots is None else slots.tobytes()))

    def promise(self, pool: str, tenant: str, tokens: Int32s, number: int) -> bool:
        """Say that the prefix `tokens` is being computed, and will be on offer. As `offer`."""
        return self._tell(Promise(pool, tenant, tokens.tobytes(), number))

    def settle(self, pool: str, number: int) -> bool:
        """Take back a promise, kept or not. As `offer`."""
        return self._tell(Settle(pool, number))

    def promised(self, tokens: Int32s, tenant: str, without: Collection[str]) -> int:
        """How many leading whole blocks of `tokens` somebody is computing, in pools other than `without`."""
        with self._lock:
            return self._line.replica.space.promises.blocks(tokens, tenant, without)

    def speak(self) -> None:
        """To be called by `on_rejoin` before it offers: what was offered since we joined has not been sent."""
        with self._lock:
            self._line.muted = False

    def match(
        self, tokens: Int32s, tenant: str, first: int, without: Collection[str]
    ) -> tuple[list[Run], list[PoolRecord]]:
        """The longest offered prefix, as `Space.match`, and for each run the record of its pool.

        Where its own offers are to be found, what was received already or offered by this engine itself is put into the
        replica before, for at most some `DRAIN_SECONDS`; else the watching thread does it.
        """
        with self._lock:
            replica = self._line.replica
            if self._finds_own:
                end = time.perf_counter() + DRAIN_SECONDS
                while replica.pending and time.perf_counter() < end:
                    self._gone += replica.step()
            runs = replica.space.match(tokens, tenant, first, without)
            return runs, [replica.space.pools[run.pool].record for run in runs]

    def peers(self) -> int:
        """How many other engines' pools are in the space, counted by the process that they die with first."""
        own = {record.pool for record in self._join.pools}
        with self._lock:
            pools = self._line.replica.space.pools
            return len({pool.record.processes[0] for name, pool in pools.items() if name not in own})

    def close(self) -> None:
        """Leave the market: the service takes everything of this engine down. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._lock:
            self._line.close()
        self._on_gone = self._on_rejoin = _nothing  # whoever is called holds us: nothing must wait for the collector
        os.close(self._wake)

    def _tell(self, change: News) -> bool:
        """Tell the service, and our replica where it is to know."""
        frame = pack_message(change)
        with self._lock:
            if self._finds_own:
                self._line.replica.add(change)
            sent = self._line.send(frame)
            if self._line.wire.blocked:
                os.eventfd_write(self._wake, 1)  # for the watching thread to go on with it
            return sent

    def _watch(self) -> None:
        """Put in what comes, say which pools have gone, and rejoin when the service dies."""
        again_at, pause, poll = 0.0, AGAIN_SECONDS, self._watched()
        while not self._closing.is_set():
            died = self._died_meanwhile(poll)
            if died:
                counters.add("service_lost", reason="the service of the market died; joining again")
            elif self._line.wire.closed:
                counters.add("membership_lost", reason="the connection to the service broke; joining again")
                self._closing.wait(AGAIN_SECONDS)  # it may break again and again
            if died or self._line.wire.closed:
                if not self._rejoin():
                    return
                poll = self._watched()
            self._put_in()
            with self._lock:
                gone, self._gone = self._gone, []
                missing = self._line.missing and time.monotonic() > again_at
                self._line.missing = self._line.missing and not missing
            if missing:
                counters.add("offered_again", reason="the service missed an offer")
                self._on_rejoin()
                pause = min(2 * pause, LONGEST_AGAIN) if self._line.missing else AGAIN_SECONDS
                again_at = time.monotonic() + pause
            if gone:
                self._on_gone(gone)

    def _died_meanwhile(self, poll: select.poll) -> bool:
        """Wait until something has come, or for a while; whether the service has died."""
        if self._line.wire.closed:  # who is killed closes its connections a moment before it is dead
            poll.unregister(self._line.wire)
        else:
            poll.register(self._line.wire, self._line.wire.events)
        ready = dict(poll.poll(WATCH_SECONDS * 1000))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._line.pidfd in ready

    def _watched(self) -> select.poll:
        """What the watching thread waits for: the service, its end, and whoever wakes us."""
        poll = select.poll()
        for source in (self._line.wire, self._line.pidfd, self._wake):
            poll.register(source, select.POLLIN)
        return poll

    def _put_in(self) -> None:
        """Put what has come into the replica, and let others have their turn in between."""
        end = time.monotonic() + WATCH_SECONDS
        while (now := time.monotonic()) < end:
            self._behind_since = now if self._behind_since is None else self._behind_since
            turn = min(max(TURN_SECONDS, TURN_SHARE * (now - self._behind_since)), LONGEST_TURN)
            with self._lock:
                current, gone = self._line.drain(time.perf_counter() + turn)
                self._gone += gone
            if current:
                self._behind_since = None
                return
            time.sleep(NAP_SECONDS)
        os.eventfd_write(self._wake, 1)

    def _rejoin(self) -> bool:
        """Join anew, trying until it works or the client is closed."""
        with self._lock:
            self._line.close()
        while not self._closing.is_set():
            try:
                line = join_service(self._address, self._join, self._closing)
            except KVMarketError as error:
                counters.add("rejoin_failed", reason=type(error).__name__)
                self._closing.wait(0.5)
                continue
            with self._lock:
                line.muted = True
                old, self._line = self._line.replica.space, line
                self._gone += [pool for pool in old.pools if pool not in line.replica.space.pools]
            self._on_rejoin()
            return True
        return False


def _nothing(*_: object) -> None:
    """In place of the callbacks of a client that is closed."""
