"""The sending side of a client: what an engine tells the service about its own pools."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import msgspec

from kvmarket.registry.client.connection import Connection
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.home import Home
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.client.turns import Turns
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import (
    Join,
    News,
    Offered,
    PoolGone,
    PoolJoined,
    PoolRecord,
    Promise,
    Retire,
    Settle,
)
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.snapshot import SnapshotParts
from kvmarket.registry.space.space import OnOffer
from kvmarket.registry.trie.tokens import Int32s, Int64s

PIECE_BLOCKS, PIECE_SLOTS = 1 << 12, 1 << 16  # in one message


class Telling:
    """Tells the service of offers, retirements and promises, and of pools that come and go. Thread-safe.

    No method waits: if the service is away or does not keep up, a snapshot will tell later what stands then.
    """

    _connection: Connection
    _wake: int  # an eventfd that wakes the watching thread

    def __init__(
        self,
        address: Address,
        join: Join,
        snapshot: Callable[[], SnapshotParts],
        foreign: ForeignPools,
        finds_own: bool,
        on_offer: OnOffer | None,
    ) -> None:
        """Join nothing yet: the subclass sets `_wake` and `_connection`. For the arguments see `Client`."""
        self._join, self._finds_own = join, finds_own
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._turns = Turns()
        self._replica = Replica(join.block_size, join.pools)
        self._replica.space.on_offer = on_offer
        self.home = Home(address, join, self._replica, snapshot, foreign, self._closing)

    def offer(self, offering: Offering) -> None:
        """Offer these blocks; the arrays are copied. Costs 10 us and 1 us a KiB.

        Never waits: if the service is away or does not keep up, a snapshot will hold these offers later.
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

    def add_pool(self, record: PoolRecord) -> None:
        """Add a pool of this engine, which may be offered from now on."""
        with self._lock:
            self._replica.own(record)
            self._have((*self._join.pools, record), PoolJoined(record))

    def drop_pool(self, pool: str) -> None:
        """Drop a pool of this engine, with its offers. Not the last one: leave the market instead."""
        with self._lock:
            self._replica.drop_own(pool)
            self._have(tuple(record for record in self._join.pools if record.pool != pool), PoolGone(pool))

    def promise(self, pool: str, tenant: str, tokens: Int32s, number: int) -> None:
        """Announce that this engine computes the prefix `tokens` and will offer it. As `offer`."""
        self._tell(Promise(pool, tenant, tokens.tobytes(), number))

    def settle(self, pool: str, number: int) -> None:
        """End a promise, kept or not. As `offer`."""
        self._tell(Settle(pool, number))

    def _tell(self, change: Offered) -> None:
        """Send a change to the service, and with `finds_own` put it into our replica; after `close` do nothing."""
        self._turns.called(time.monotonic())
        with self._lock:
            if self._closing.is_set():
                return
            if self._finds_own:
                self._replica.add(change)
            self._send(change)

    def _send(self, change: News) -> None:
        connection = self._connection
        connection.feed.tell(change)
        if connection.socket.blocked or connection.feed.ready:
            os.eventfd_write(self._wake, 1)  # the watching thread sends the rest

    def _have(self, pools: tuple[PoolRecord, ...], change: PoolJoined | PoolGone) -> None:
        """Note that this engine's pools are `pools` now, and tell the service of the change. Needs the lock."""
        self._join = msgspec.structs.replace(self._join, pools=pools)
        self.home.join_as(self._join)
        feed = self._connection.feed
        if feed.telling:  # the snapshot under way would not name the right pools at its end
            feed.begin()
        self._send(change)
