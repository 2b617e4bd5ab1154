"""An engine's membership of a market, with a replica of what the service knows: a match asks nobody.

A thread of the market's own puts what comes into the replica, in turns so short that who matches meanwhile waits some
0.6 ms at most: it comes while the engine's own thread waits for its GPU, and costs that thread nothing. An engine that
never waits leaves it a turn every 5 ms, Python's switch interval: the longer the replica is behind, the longer are the
turns, up to 5 ms too. The same thread tells the service all that the engine offers, part by part, when it joins and
whenever something was missed. When the service dies, it starts it anew and joins again; the replica answers meanwhile.
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
from kvmarket.registry.client.connection import START_SECONDS, Connection
from kvmarket.registry.client.foreign import ForeignPools, Memory
from kvmarket.registry.client.home import Home
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.client.turns import SHORT_SECONDS, TURN_SECONDS, Turns
from kvmarket.registry.client.vigil import Vigil
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import Join, News, PoolRecord, Promise, Retire, Settle
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.snapshot import SnapshotParts
from kvmarket.registry.space.standing import Run
from kvmarket.registry.trie.tokens import Int32s, Int64s
from kvmarket.support.supervised import survived
from kvmarket.support.transient import MORE

DRAIN_SECONDS = 0.002  # at most some so long a match puts into the replica what is not in it yet
WATCH_SECONDS = 0.1
AGAIN_SECONDS = 1.0  # behind a connection that broke: it may break again and again
LACKING_SECONDS = 2.0  # so long it waits for the memory of engines in other PID namespaces
JOIN_SECONDS = 10.0  # so long a new member waits until it knows all; then the rest comes behind
PIECE_BLOCKS, PIECE_SLOTS = 1 << 12, 1 << 16  # in one message


class Client:
    """One engine's membership of a market. Methods may be called from any thread."""

    def __init__(
        self,
        address: Address,
        join: Join,
        on_gone: Callable[[Sequence[str]], None],
        snapshot: Callable[[], SnapshotParts],
        go_on: Callable[[], bool],
        memory: Memory,
        finds_own: bool,
    ) -> None:
        """Join the market at `address`, starting its service if nobody has; know what it knows, within some seconds.

        `finds_own`: whether `match` finds what this engine itself offers, which is put into its replica for that.
        `snapshot` tells what this engine has on offer; `memory` names the memory of its pools, for engines of other
        PID namespaces (see foreign.py). The other two run on the watching thread: `on_gone` hears
        of pools that have gone; `go_on` calls `Client.go_on`, when nobody offers meanwhile, and does a little more of
        what the engine has left for later: whether anything was done. Raises VersionError, AddressError, LayoutError,
        NamespaceError or RefusedError, each with what to do.
        """
        self._join = join
        self._on_gone, self._on_more = on_gone, go_on
        self._finds_own = finds_own
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._gone: list[str] = []
        self._turns = Turns()
        self._replica = Replica(join.block_size, join.pools)
        self._foreign = ForeignPools(memory)
        self.home = Home(address, join, self._replica, snapshot, self._foreign, self._closing)
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

    def offer(self, offering: Offering) -> None:
        """Offer these blocks; its arrays are copied.

        Never waits: where the service is away or does not keep up, all that stands is told when it does again. Costs
        10 us and 1 us a KiB.
        """
        for piece in offering.pieces(PIECE_BLOCKS):
            self._tell(piece.message())

    def retire(self, pool: str, slots: Int64s | None) -> None:
        """Take the offers of these slots down, of the whole pool when None. As `offer`."""
        if slots is None:
            self._tell(Retire(pool, None))
        else:
            for start in range(0, len(slots), PIECE_SLOTS):
                self._tell(Retire(pool, slots[start : start + PIECE_SLOTS].tobytes()))

    def promise(self, pool: str, tenant: str, tokens: Int32s, number: int) -> None:
        """Say that the prefix `tokens` is being computed, and will be on offer. As `offer`."""
        self._tell(Promise(pool, tenant, tokens.tobytes(), number))

    def settle(self, pool: str, number: int) -> None:
        """Take back a promise, kept or not. As `offer`."""
        self._tell(Settle(pool, number))

    def promised(self, tokens: Int32s, tenant: str, without: Collection[str]) -> int:
        """How many leading whole blocks of `tokens` somebody is computing, in pools other than `without`."""
        with self._lock:
            return self._replica.space.promises.blocks(tokens, tenant, without)

    def go_on(self) -> bool:
        """Tell the next part of what this engine has on offer, where some is to be told; whether that told anything.

        Nobody may change what is on offer meanwhile. Costs some 0.5 ms.
        """
        with self._lock:
            return self._connection.feed.go_on()

    def wake(self) -> None:
        """Have the watching thread look for what was left for later."""
        with self._lock:
            if not self._closing.is_set():
                os.eventfd_write(self._wake, 1)

    def match(
        self, tokens: Int32s, tenant: str, first: int, without: Collection[str]
    ) -> tuple[list[Run], list[PoolRecord]]:
        """The longest offered prefix, as `Space.match`, and for each run the record of its pool.

        Where its own offers are to be found, what was received already or offered by this engine itself is put into the
        replica before, for at most some `DRAIN_SECONDS`; else the watching thread does it.
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

    def descriptors(self, pool: str) -> tuple[int, ...] | None:
        """Our descriptors of the memory of a pool in another PID namespace; None where they have not come yet."""
        return self._foreign.of(pool)

    def peers(self) -> int:
        """How many other engines' pools are in the space, counted by the process that they die with first."""
        own = {record.pool for record in self._join.pools}
        with self._lock:
            pools = self._replica.space.pools
            return len({pool.record.processes[0] for name, pool in pools.items() if name not in own})

    def close(self) -> None:
        """Leave the market: the service takes everything of this engine down. May be called twice.

        What is offered or retired afterwards is told to nobody.
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
        self.home.close()
        del self._on_gone, self._on_more  # whoever is called holds us: no cycle may keep our memory

    def _tell(self, change: News) -> None:
        """Tell the service, and our replica where it is to know; nobody once we have left."""
        self._turns.called(time.monotonic())
        with self._lock:
            if self._closing.is_set():
                return
            if self._finds_own:
                self._replica.add(change)
            connection = self._connection
            connection.feed.tell(change)
            if connection.socket.blocked or connection.feed.ready:
                os.eventfd_write(self._wake, 1)  # for the watching thread to go on with it

    def _first_connection(self) -> Connection:
        """Join, and know what the service knows, as far as that comes within `JOIN_SECONDS`."""
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
        """Hear what stands; False where the service dies meanwhile. Nothing is on offer here yet."""
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
        """What the watching thread does, whatever goes wrong."""
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
                if gone:
                    self._on_gone(gone)
            if turn.failed:
                self._closing.wait(AGAIN_SECONDS)

    def _ask(self, connection: Connection, gone: Sequence[str] = ()) -> bool:
        """Ask for the memory of pools that cannot be opened; whether any is lacking. `gone` were forgotten just now."""
        return self._foreign.look(self._replica.take_new(gone), connection.socket, time.monotonic())

    def _vigil(self) -> Vigil:
        return Vigil(self._connection, self._wake, self._closing)

    def _ended(self, vigil: Vigil) -> bool:
        """Wait until something has come, or for a while; whether the connection has ended, or is to end."""
        if self._connection.pidfd < 0:  # it has been let go of, and no other was made
            return True
        if vigil.dies(WATCH_SECONDS, AGAIN_SECONDS):
            counters.add("service_lost", reason="the service of the market died; joining again")
        elif self._connection.socket.closed:
            counters.add("membership_lost", reason="the connection to the service broke; joining again")
        elif not self.home.free(time.monotonic()):
            return False
        return True

    def _put_in(self) -> None:
        """Put what has come into the replica, tell what is to be told, and let others have their turn in between."""
        end = time.monotonic() + WATCH_SECONDS
        while (now := time.monotonic()) < end and not self._closing.is_set():
            turn, nap = self._turns.next(now)
            with self._lock:
                current, gone = self._connection.drain(time.perf_counter() + turn)
                self._gone += gone
                if current and self._replica.space.collecting:
                    self._replica.space.collect()
                    current = False
            long = time.monotonic() - now > SHORT_SECONDS
            if not current or (long and self._connection.feed.ready):  # else whoever waits would wait for two turns
                time.sleep(nap)
            if self._on_more():
                time.sleep(nap)
            elif current:
                self._turns.done()
                return
        os.eventfd_write(self._wake, 1)

    def _rejoin(self) -> bool:
        """Join anew, trying until it works or the client is closed."""
        with self._lock:
            self._connection.close()
        while not self._closing.is_set():
            try:
                connection = self.home.join()
            except KVMarketError as error:
                counters.add("rejoin_failed", reason=type(error).__name__)
                self._closing.wait(0.5)
                continue
            with self._lock:
                if connection.service != self._connection.service:
                    self._replica.rejoin(time.monotonic())
                self._connection = connection
            return True
        return False
