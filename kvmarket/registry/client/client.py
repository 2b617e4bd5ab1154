"""An engine's membership of a market, with a replica of the service's offers: a match needs no message.

A watching thread puts the received changes into the replica. While the engine steps, it holds the lock for turns so
short that a match waits about 0.6 ms at most. It runs while the engine's own thread waits for its GPU, and then costs
that thread nothing. An engine that never waits leaves it one turn every 5 ms (Python's switch interval). While the
engine calls nothing, turns grow with the time that the replica is behind, up to 5 ms. The same thread sends snapshots
of its offers. If the service dies, the thread starts a new one and joins again; the replica answers matches meanwhile.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from kvmarket import counters
from kvmarket.errors import AddressError, KVMarketError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client.connection import START_SECONDS, Connection
from kvmarket.registry.client.foreign import ForeignPools, Memory
from kvmarket.registry.client.telling import Telling
from kvmarket.registry.client.turns import NAP_SECONDS, SHORT_SECONDS, TURN_SECONDS
from kvmarket.registry.client.vigil import Vigil
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import Before, Join, PoolRecord
from kvmarket.registry.space.lookup import crowded, far_offers, prefix_of
from kvmarket.registry.space.snapshot import SnapshotParts
from kvmarket.registry.space.space import OnOffer
from kvmarket.registry.space.standing import Run
from kvmarket.registry.trie.tokens import Int32s
from kvmarket.support.flags import Flags
from kvmarket.support.supervised import survived
from kvmarket.support.transient import MORE

DRAIN_SECONDS = 0.002  # the most that a match takes to put received changes into the replica
WATCH_SECONDS = 0.1
AGAIN_SECONDS = 1.0  # pause after a connection broke: it may break again and again
LACKING_SECONDS = 2.0  # the most that joining waits for the memory of engines in other PID namespaces
JOIN_SECONDS = 10.0  # the most that joining waits for the first snapshot; the rest comes later


class Client(Telling):
    """One engine's membership of a market. Thread-safe."""

    def __init__(
        self,
        address: Address,
        join: Join,
        on_gone: Callable[[Sequence[str]], None],
        snapshot: Callable[[], SnapshotParts],
        go_on: Callable[[], bool],
        memory: Memory,
        finds_own: bool,
        on_offer: OnOffer | None = None,
        on_far: Callable[[Sequence[PoolRecord]], None] | None = None,
    ) -> None:
        """Join the market at `address`, start its service if none runs, and wait for the first snapshot.

        It waits for up to `JOIN_SECONDS`. `finds_own`: whether `match` finds this engine's own offers; they are put
        into its replica then. `snapshot` returns this engine's offers. `memory` names the memory of its pools, for
        engines of other PID namespaces (see foreign.py). Three callbacks run on the watching thread: `on_gone` gets the
        pools that left, `on_far` the far pools that came; `go_on` must call `Client.go_on` while no other thread
        offers, may do some deferred work, and returns whether anything was done. `on_offer` is called with the offers
        that come into the replica; it must be short and call nothing of this client.
        Raises VersionError, AddressError, LayoutError, NamespaceError or RefusedError.
        """
        self._on_gone, self._on_far, self._on_more = on_gone, on_far, go_on
        self._gone: list[str] = []
        self._far: list[PoolRecord] = []
        self._foreign = ForeignPools(memory)
        super().__init__(address, join, snapshot, self._foreign, finds_own, on_offer)
        with ExitStack() as undo:
            try:
                self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                undo.callback(os.close, self._wake)
                self._connection = self._first_connection()
                undo.callback(self._connection.close)
                self._thread = threading.Thread(target=self._watch, name="kvmarket-watch", daemon=True)
                self._thread.start()
            except (OSError, RuntimeError) as error:
                raise AddressError(f"this process cannot join a market now: {error}; {MORE}") from error
            undo.pop_all()

    def promised(self, tokens: Int32s, tenant: str, without: Collection[str]) -> int:
        """Number of leading whole blocks of `tokens` that are promised in pools other than `without`."""
        with self._lock:
            return self._replica.space.promises.blocks(tokens, tenant, without)

    def go_on(self) -> bool:
        """Send the next part of a snapshot of this engine's offers, if one is due; return whether one was sent.

        The offers must not change meanwhile. Costs about 0.5 ms.
        """
        with self._lock:
            return self._connection.feed.go_on()

    def wake(self) -> None:
        """Wake the watching thread, so that it does deferred work."""
        with self._lock:
            if not self._closing.is_set():
                os.eventfd_write(self._wake, 1)

    def match(
        self, tokens: Int32s, tenant: str, first: int, without: Collection[str]
    ) -> tuple[list[Run], list[PoolRecord]]:
        """The longest offered prefix, as `Space.match`, and for each run the record of its pool.

        With `finds_own`, first puts changes that were received or offered here into the replica, for at most about
        `DRAIN_SECONDS`; else only the watching thread does.
        """
        self._turns.called(time.monotonic())
        with self._lock:
            replica = self._replica
            if self._finds_own:
                end = time.perf_counter() + DRAIN_SECONDS
                while replica.pending and time.perf_counter() < end:
                    self._gone += replica.step()
            runs = replica.space.match(tokens, tenant, first, without)
            return runs, [replica.space.pools[run.pool].record for run in runs]

    def prefix_of(self, pool: str, block: Before) -> tuple[str, Int32s] | None:
        """The tenant and the tokens of the prefix that ends in this block of `pool`; None if it is not on offer."""
        with self._lock:
            return prefix_of(self._replica.space, block, pool)

    def crowded(self, tokens: Int32s, tenant: str) -> Flags:
        """For each leading offered block of the prefix, whether it has as many offers as a block can have."""
        with self._lock:
            return crowded(self._replica.space, tokens, tenant)

    def far_offers(self, tokens: Int32s, tenant: str, first: int, without: Collection[str]) -> Flags:
        """For each offered block of the prefix from `first` on, whether a far pool offers it, but for `without`."""
        with self._lock:
            return far_offers(self._replica.space, tokens, tenant, first, without)

    def lenders(self, *, far: bool) -> frozenset[Process]:
        """The lenders of far memory in the space, or of other memory; each by the first process of its pools."""
        with self._lock:
            records = [pool.record for pool in self._replica.space.pools.values()]
            return frozenset(record.processes[0] for record in records if record.lent and record.far == far)

    def descriptors(self, pool: str) -> tuple[int, ...] | None:
        """Our descriptors of the memory of a pool in another PID namespace; None if they have not come yet."""
        return self._foreign.of(pool)

    def peers(self) -> int:
        """Number of other engines in the space. Pools whose first process is the same count as one engine."""
        own = {record.pool for record in self._join.pools}
        with self._lock:
            pools = self._replica.space.pools
            return len({pool.record.processes[0] for name, pool in pools.items() if name not in own})

    def close(self) -> None:
        """Leave the market: the service takes down all offers of this engine. May be called twice.

        Changes after this call are sent to nobody.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._lock:
            self._connection.close()
            self._replica.space.trie.clear()
        self._foreign.close()
        os.close(self._wake)
        del self._on_gone, self._on_far, self._on_more  # the callbacks refer to us: no cycle may keep our memory

    def _first_connection(self) -> Connection:
        """Join, and wait for the first snapshot for up to `JOIN_SECONDS`. Raises AddressError, or as `Home.join`."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = self.home.join()
            if self._settled(connection, time.monotonic() + JOIN_SECONDS):
                return connection
            connection.close()
            if time.monotonic() > deadline:
                at = self.home.at
                raise AddressError(f"the service at {at} let this engine in and died, again and again; see {at.log}")

    def _settled(self, connection: Connection, deadline: float) -> bool:
        """Exchange first snapshots until `deadline`; False if the service dies meanwhile."""
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        poll.register(connection.pidfd, select.POLLIN)
        lacking, patience = True, time.monotonic() + LACKING_SECONDS
        while (connection.feed.telling or not self._replica.whole or lacking) and time.monotonic() < deadline:
            connection.feed.go_on()
            current, gone = connection.drain(time.perf_counter() + TURN_SECONDS)
            self._gone += gone
            lacking = self._ask(connection) and time.monotonic() < patience
            waits = current and (lacking or not self._replica.whole)
            ready = dict(poll.poll(WATCH_SECONDS * 1000 if waits else 0))
            if connection.pidfd in ready or connection.socket.closed:
                return False
        return True

    def _watch(self) -> None:
        """The loop of the watching thread. It survives every exception, until `close`."""
        vigil = self._vigil()
        while not self._closing.is_set():
            with survived("the thread that watches the market") as turn:
                if self._ended(vigil):
                    if not self._rejoin():
                        return
                    vigil = self._vigil()
                self._put_in()
                with self._lock:
                    self._gone += self._replica.expired(time.monotonic())
                    gone, self._gone = self._gone, []
                    self._foreign.forget(gone)
                    self._ask(self._connection, gone)
                    pools, self._far, far = self._replica.space.pools, [], self._far
                    far = [record for record in far if record.pool in pools]  # some may have left again
                if gone:
                    self._on_gone(gone)
                if far and self._on_far is not None:
                    self._on_far(far)
            if turn.failed:
                self._closing.wait(AGAIN_SECONDS)

    def _ask(self, connection: Connection, gone: Sequence[str] = ()) -> bool:
        """Ask for descriptors of pools in other PID namespaces; return whether any is missing. `gone` just left."""
        new = self._replica.take_new(gone)
        self._far += [record for record in new if record.far]
        return self._foreign.look(new, connection.socket, time.monotonic())

    def _vigil(self) -> Vigil:
        return Vigil(self._connection, self._wake, self._closing)

    def _ended(self, vigil: Vigil) -> bool:
        """Wait for a message, a wake-up, or `WATCH_SECONDS`; return whether the client must join again."""
        if self._connection.pidfd < 0:  # the connection was closed, and no other was made
            return True
        if vigil.dies(WATCH_SECONDS, AGAIN_SECONDS):
            counters.add("service_lost", reason="the service of the market died; joining again")
        elif self._connection.socket.closed:
            counters.add("membership_lost", reason="the connection to the service broke; joining again")
        elif not self.home.free(time.monotonic()):
            return False
        return True

    def _put_in(self) -> None:
        """Put received changes into the replica and send what is due, in short turns; let other threads run between."""
        end = time.monotonic() + WATCH_SECONDS
        while (now := time.monotonic()) < end and not self._closing.is_set():
            turn, nap = self._turns.next(now)
            with self._lock:
                current, gone = self._connection.drain(time.perf_counter() + turn)
                self._gone += gone
                if current and self._replica.space.collecting:
                    self._replica.space.collect()
                    current = not self._replica.space.collecting
            long = time.monotonic() - now > SHORT_SECONDS
            if not current or (long and self._connection.feed.ready):  # without a nap a match would wait for two turns
                time.sleep(nap)
            elif long:
                time.sleep(NAP_SECONDS)  # who waited for the lock also waits for the interpreter's
            if self._on_more():
                time.sleep(nap)
            elif current:
                self._turns.done()
                return
        os.eventfd_write(self._wake, 1)

    def _rejoin(self) -> bool:
        """Join again; try until it works. False if the client is closed."""
        with self._lock:
            self._connection.close()
        while not self._closing.is_set():
            try:
                connection = self.home.join()
            except KVMarketError as error:
                if self._closing.is_set():  # this ended the waiting, no fault
                    return False
                counters.add("rejoin_failed", reason=type(error).__name__, detail=error)
                self._closing.wait(0.5)
                continue
            with self._lock:
                if connection.service != self._connection.service:
                    self._replica.rejoin(time.monotonic())
                self._connection = connection
            return True
        return False
