"""A replica: an engine's copy of the offers in its space, updated by the service's changes. No sockets.

A replica may be late. That is harmless, because generations decide which bytes are valid. Changes that the service
sends about this engine's own pools are ignored; an engine that must find its own offers puts them in itself. A replica
outlives a service: its offers stay until the next service has sent its snapshot, or until their owner has died.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from kvmarket import counters
from kvmarket.errors import MessageError, MissingBlockError, TokenError
from kvmarket.registry.protocol.messages import (
    Change,
    Changes,
    News,
    PoolGone,
    PoolJoined,
    PoolRecord,
    PoolTold,
    Snapshot,
    SnapshotEnd,
)
from kvmarket.registry.space.news import put_in
from kvmarket.registry.space.space import Space

ABSENT_SECONDS = 30.0  # an engine that has not joined a new service by then counts as having left


class _Own(NamedTuple):
    """A change of this engine's own pools, made by itself."""

    change: News


class _Begin(NamedTuple):
    """The beginning of a snapshot, in the queue."""


class Replica:
    """A space, and a queue of changes that were received but not put into it yet. Not thread-safe."""

    def __init__(self, block_size: int, own: Collection[PoolRecord]) -> None:
        """Start with this engine's `own` pools only."""
        self._own = frozenset(record.pool for record in own)
        self.space = Space(block_size)
        for record in own:
            self.space.add_pool(record)
        self.whole = False  # whether a whole snapshot of the present service has been put in
        self._queue: deque[Change | _Own | _Begin] = deque()
        self._work: Iterator[object] | None = None  # the change under way
        self._told: set[str] | None = None  # pools that the snapshot under way has named
        self._new: dict[str, PoolRecord] = {}  # pools met since `take_new` was called
        self._absent: dict[str, float] = {}  # pools that a new service does not know yet -> when they count as left
        self._absent_until = 0.0

    @property
    def pending(self) -> bool:
        """Whether there are received changes that are not in the space yet."""
        return bool(self._queue) or self._work is not None

    def rejoin(self, now: float) -> None:
        """Prepare for the snapshot of another service, which some living engines may not have joined yet."""
        self.whole, self._absent_until = False, now + ABSENT_SECONDS

    def receive(self, message: Changes) -> None:
        """Queue changes that follow what was received before. Costs less than 1 us."""
        if message.snapshot:
            self._queue.append(_Begin())
        self._queue.extend(message.changes)

    def own(self, record: PoolRecord) -> None:
        """Add a pool of this engine. Its id counts as this engine's for ever, since the service may send late news."""
        self._own |= {record.pool}
        self.space.add_pool(record)

    def drop_own(self, pool: str) -> None:
        """Drop a pool of this engine."""
        self.space.drop_pool(pool)

    def add(self, own: News) -> None:
        """Queue a change of this engine's own pools."""
        self._queue.append(_Own(own))

    def step(self) -> list[str]:
        """Do the next step of putting queued changes into the space; return the pools that left.

        Costs up to about 0.3 ms. A change that the space refuses is counted and skipped.
        """
        try:
            if self._work is None:
                return self._begin(self._queue.popleft())
            if next(self._work, self) is self:
                self._work = None
        except (MessageError, TokenError) as error:
            self._work = None
            if self._told is None or not isinstance(error, MissingBlockError):  # else the snapshot will hold the block
                counters.add("change_refused", reason=type(error).__name__, detail=error)
        return []

    def take_new(self, gone: Iterable[str]) -> Collection[PoolRecord]:
        """The pools met since the last call, and those of `gone` that are there again. This engine's own never are."""
        new, self._new = self._new, {}
        return (new | {name: self.space.pools[name].record for name in gone if name in self.space.pools}).values()

    def expired(self, now: float) -> list[str]:
        """Drop pools that a new service does not know and whose owners have died, or have not joined in time.

        Returns their ids. Costs about 20 us for each pool that the service does not know.
        """
        gone = []
        for name, until in list(self._absent.items()):
            pool = self.space.pools.get(name)
            if pool is None or now > until or not all(process.alive() for process in pool.record.processes):
                gone += self._gone(name)
        return gone

    def _begin(self, change: Change | _Own | _Begin) -> list[str]:
        """Apply a change, or begin to apply a long one as `_work`; return the pools that left."""
        match change:
            case _Own():
                self._work = put_in(self.space, change.change)
            case _Begin():
                self._told = set()
                for name, pool in self.space.pools.items():
                    if name not in self._own:
                        pool.begin()
            case PoolJoined():
                self._met(change)
            case PoolGone():
                return self._gone(change.pool)
            case PoolTold():
                self._complete(change.pool)
            case SnapshotEnd():
                return self._end(change)
            case Snapshot():
                self._work = put_in(self.space, change, self._own)
            case _ if change.pool not in self._own:
                self._work = put_in(self.space, change)
        return []

    def _met(self, joined: PoolJoined) -> None:
        name = joined.record.pool
        if name not in self._own:
            self._new[name] = self.space.add_pool(joined.record).record
            self._absent.pop(name, None)
            if self._told is not None:
                self._told.add(name)

    def _gone(self, name: str) -> list[str]:
        self._absent.pop(name, None)
        self._new.pop(name, None)
        if name in self._own or name not in self.space.pools:
            return []
        self.space.drop_pool(name)
        return [name]

    def _complete(self, name: str) -> None:
        """Drop the offers of a pool that its snapshot did not hold."""
        pool = self.space.pools.get(name)
        if pool is not None and name not in self._own:
            self.space.retire(name, pool.unseen())

    def _end(self, end: SnapshotEnd) -> list[str]:
        """End a snapshot: drop the offers and pools that it did not hold; return the pools that left."""
        told, self._told = self._told, None
        if told is None:  # no snapshot had begun
            return []
        self.whole = True
        for name in end.told:
            self._complete(name)
        gone = []
        for name in [name for name in self.space.pools if name not in told and name not in self._own]:
            if self._absent_until or name in self._absent:
                self._absent.setdefault(name, self._absent_until)
            else:
                gone += self._gone(name)
        self._absent_until = 0.0
        return gone
