"""An engine's membership of a market, with a replica of what the service knows: a match asks nobody.

The stream is drained on the thread that matches, a little at a time, so that no other thread holds the interpreter when
a match is due; only where nobody has matched for a while does the watching thread do it. When the service dies, the
watching thread starts it anew, joins again and calls `on_rejoin`, so that the engine can offer what it still holds; the
old replica answers until then.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Collection, Sequence

import zmq

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.registry.address import Address
from kvmarket.registry.line import join_service
from kvmarket.registry.messages import Join, OfferBlocks, PoolRecord, Retire, pack_message
from kvmarket.registry.offering import Offering
from kvmarket.registry.standing import Run
from kvmarket.registry.tokens import Int32s, Int64s

IDLE_SECONDS = 0.25  # a replica that was not current for so long is drained by the watching thread
TURN_SECONDS = 0.001  # for so long at a time
WATCH_SECONDS = 0.1
AGAIN_SECONDS = 1.0  # no more often is all offered again to a service that missed something


class Client:
    """One engine's membership of a market. Methods may be called from any thread."""

    def __init__(
        self,
        address: Address,
        join: Join,
        on_gone: Callable[[Sequence[str]], None],
        on_rejoin: Callable[[], None],
    ) -> None:
        """Join the market at `address`, starting its service if nobody has; know all that it knows.

        Both callbacks run on the watching thread: `on_gone` hears of pools that have gone within some 0.1 s,
        `on_rejoin` is called when all that stands must be offered again. Raises VersionError, AddressError,
        LayoutError, NamespaceError or RefusedError, each with what to do.
        """
        self._address, self._join = address, join
        self._on_gone, self._on_rejoin = on_gone, on_rejoin
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._gone: list[str] = []
        self._current_at = 0.0  # when the replica last had all that had come
        try:
            self._line = join_service(self._context, address, join, self._closing)
        except KVMarketError:
            self._context.destroy(linger=0)
            raise
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

    def speak(self) -> None:
        """To be called by `on_rejoin` before it offers: what was offered since we joined has not been sent."""
        with self._lock:
            self._line.muted = False

    def match(
        self, tokens: Int32s, tenant: str, first: int, without: Collection[str], seconds: float
    ) -> tuple[list[Run], list[PoolRecord]]:
        """The longest offered prefix, as `Space.match`, and for each run the record of its pool.

        Before that, what has come of the stream is put into the replica, for at most some `seconds`.
        """
        with self._lock:
            self._drain(seconds)
            space = self._line.replica.space
            runs = space.match(tokens, tenant, first, without)
            return runs, [space.pools[run.pool].record for run in runs]

    def drain(self, seconds: float) -> None:
        """Put what has come of the stream into the replica, for at most some `seconds`; never waits for more."""
        with self._lock:
            self._drain(seconds)

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
        self._thread.join()
        with self._lock:
            self._line.leave()
        self._on_gone = self._on_rejoin = _nothing  # whoever is called holds us: nothing must wait for the collector
        self._context.term()

    def _tell(self, change: OfferBlocks | Retire) -> bool:
        """Tell our replica, and the service."""
        frames = pack_message(change)
        with self._lock:
            self._line.replica.add(change)
            return self._line.send(frames)

    def _drain(self, seconds: float) -> None:
        current, gone = self._line.drain(time.perf_counter() + seconds)
        self._gone += gone
        if current:
            self._current_at = time.monotonic()

    def _watch(self) -> None:
        """Drain what nobody else does, say which pools have gone, and rejoin when the service dies."""
        again_at = 0.0
        while not self._closing.is_set():
            poll = select.poll()
            poll.register(self._line.pidfd, select.POLLIN)
            if poll.poll(WATCH_SECONDS * 1000) and not self._rejoin():
                return
            self._catch_up()
            with self._lock:
                gone, self._gone = self._gone, []
                missing = self._line.missing and time.monotonic() - again_at > AGAIN_SECONDS
                self._line.missing = self._line.missing and not missing
            if missing:
                again_at = time.monotonic()
                counters.add("offered_again", reason="the service missed an offer")
                self._on_rejoin()
            if gone:
                self._on_gone(gone)

    def _catch_up(self) -> None:
        """Drain a replica that was not current for a while, and let others have their turn in between."""
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end and time.monotonic() - self._current_at > IDLE_SECONDS:
            self.drain(TURN_SECONDS)
            time.sleep(TURN_SECONDS / 10)

    def _rejoin(self) -> bool:
        """Join anew after the service died, trying until it works or the client is closed."""
        counters.add("service_lost", reason="the service of the market died; joining again")
        with self._lock:
            self._line.close()
        while not self._closing.is_set():
            try:
                line = join_service(self._context, self._address, self._join, self._closing)
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
