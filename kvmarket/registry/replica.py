"""A replica: what an engine knows of its space, kept current by the service's stream. No sockets.

It may be late, never wrong about what counts: generations decide that. What the service says of this engine's own pools
is passed over: an engine that is to find its own offers puts in what it offers and retires where that happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from kvmarket import counters
from kvmarket.errors import MessageError, TokenError
from kvmarket.registry.messages import Change, Changes, News, OfferBlocks, PoolGone, PoolJoined, Snapshot
from kvmarket.registry.news import put_in
from kvmarket.registry.offering import Offering, offering_of
from kvmarket.registry.space import Space

SLICE_BLOCKS = 64  # put up in one step: some 50 us
_OF_ALL = PoolJoined, PoolGone, Snapshot  # not news of one pool by its engine


class _Own(NamedTuple):
    """What this engine itself offers, retires or promises."""

    change: News


class Replica:
    """A space, and what of the stream has been received but not put into it yet. Not thread-safe."""

    def __init__(self, block_size: int, own: Collection[str]) -> None:
        """Knows nothing until a snapshot has come. `own`: the ids of this engine's pools."""
        self._own = frozenset(own)
        self.space = Space(block_size)
        self.synced = False  # whether a whole snapshot has come, and no number was missed since
        self.whole = False  # whether one has been put in: it knows what stood when it joined
        self._next = 0
        self._queue: deque[Change | Snapshot | _Own] = deque()
        self._rest: Offering | None = None  # of the change under way
        self._building: Space | None = None  # from the parts of a snapshot; the old one answers meanwhile

    @property
    def pending(self) -> bool:
        """Whether anything received has not been put in yet."""
        return bool(self._queue) or self._rest is not None

    def receive(self, reply: Changes | Snapshot) -> bool:
        """Queue what came; False when a number was missed: then ask for a snapshot. Costs some us."""
        if isinstance(reply, Snapshot):
            if reply.first or reply.sequence == self._next - 1:
                self._next = reply.sequence + 1
                self.synced = self.synced or reply.last
                self._queue.append(reply)
            return True
        if not self.synced:  # a snapshot is on its way, unless we are told that we missed something again
            return bool(reply.changes)
        if reply.changes:
            self.synced = reply.sequence == self._next
            self._next = reply.sequence + 1
        else:
            self.synced = reply.sequence == self._next - 1
        if self.synced:
            self._queue.extend(reply.changes)
        return self.synced

    def add(self, own: News) -> None:
        """Queue what this engine itself offers, retires or promises."""
        self._queue.append(_Own(own))

    def step(self) -> list[str]:
        """Put a little of what was received into the space, in order; the pools that went with it.

        Costs up to some 50 us. What the space refuses is counted and passed over.
        """
        space = self.space if self._building is None else self._building
        if self._rest is not None:
            offering, self._rest = self._rest, None
            self._offer(self.space if offering.pool in self._own else space, offering)
            return []
        change = self._queue.popleft()
        if isinstance(change, _Own):
            change, space = change.change, self.space
        elif not isinstance(change, _OF_ALL) and change.pool in self._own:
            return []
        try:
            match change:
                case Snapshot():
                    return self._unfold(change)
                case OfferBlocks():
                    self._offer(space, offering_of(change, space.block_size))
                case PoolJoined():
                    space.add_pool(change.record)
                case PoolGone():
                    space.drop_pool(change.pool)
                    return [change.pool]
                case _:
                    put_in(space, change)
        except (MessageError, TokenError) as error:
            counters.add("change_refused", reason=type(error).__name__)
        return []

    def _offer(self, space: Space, offering: Offering) -> None:
        """Put up the first blocks of an offering and keep the rest for the next step."""
        try:
            space.offer(offering.part(0, SLICE_BLOCKS))
        except (MessageError, TokenError) as error:
            counters.add("change_refused", reason=type(error).__name__)
            return
        if len(offering.slots) > SLICE_BLOCKS:
            self._rest = offering.part(SLICE_BLOCKS, len(offering.slots))

    def _unfold(self, snapshot: Snapshot) -> list[str]:
        """The next part of a snapshot: its changes, and behind the last one the new space in place of the old."""
        if snapshot.first:
            self._building = Space(self.space.block_size)
        if snapshot.changes:
            end = Snapshot(snapshot.sequence, False, snapshot.last, ())
            self._queue.extendleft((end, *reversed(snapshot.changes)))
            return []
        if not snapshot.last or self._building is None:
            return []
        old, self.space, self._building = self.space, self._building, None
        self.whole = True
        for offering in old.offerings(self._own):
            self.space.offer(offering)
        return [pool for pool in old.pools if pool not in self.space.pools]
