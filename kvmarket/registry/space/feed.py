"""A feed: the sending side of a stream of changes, with a snapshot at the start and after a loss.

Service and engines both use it. It never waits. A change that the connection does not take is dropped, and a snapshot
follows when there is room again. So the unsent bytes are bounded, and no change is sent after one that was dropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kvmarket import counters
from kvmarket.registry.protocol.messages import Again, Change, pack_message
from kvmarket.registry.protocol.numbering import Told
from kvmarket.registry.protocol.packets import PacketSocket
from kvmarket.registry.space.snapshot import SnapshotParts

MOST_BYTES = 8 << 20  # with so many unsent bytes a change is dropped
AHEAD_BYTES = 1 << 18  # with so many unsent bytes no further part of a snapshot is made
MARK_SECONDS, MARKS_SECONDS = 0.1, 1.0  # until the last number is repeated, first and later: so its loss is noticed


class Feed:
    """The numbered changes to one listener. Not thread-safe."""

    def __init__(self, sock: PacketSocket, snapshot: Callable[[], SnapshotParts]) -> None:
        """Send over `sock`. A first snapshot is due; no change is sent before it begins."""
        self._socket, self._snapshot = sock, snapshot
        self._told = Told()
        self._under_way: SnapshotParts | None = None
        self._lacking = True  # whether a snapshot must begin before any change is sent
        self._mark_at = math.inf

    @property
    def telling(self) -> bool:
        """Whether a snapshot is due or under way."""
        return self._lacking or self._under_way is not None

    @property
    def ready(self) -> bool:
        """Whether `go_on` would send something now."""
        return self.telling and self._socket.waiting < AHEAD_BYTES

    def tell(self, *changes: Change) -> bool:
        """Send changes. False if they were dropped: a snapshot will hold them. Costs 10 us and 1 us a KiB."""
        if self._lacking:
            return False
        full = self._socket.waiting >= MOST_BYTES
        if not full and self._send(changes):
            return True
        if full:
            counters.add("message_dropped", reason="the other side does not keep up; all that stands is told again")
        self.begin()
        return False

    def begin(self) -> None:
        """Begin a snapshot as soon as there is room. No change is sent before."""
        self._lacking, self._under_way = True, None

    def asked(self, again: Again) -> bool:
        """Answer a request for a snapshot; return whether one will begin. False if one has begun since the request."""
        if not self._told.answers(again):
            self.begin()
            return True
        return False

    def go_on(self) -> bool:
        """Send the next part of a snapshot, if one is due and there is room; return whether. Costs about 0.5 ms."""
        if not self.ready or self._socket.closed:
            return False
        begins = self._lacking
        if begins:
            self._lacking, self._under_way = False, self._snapshot()
        assert self._under_way is not None, "a snapshot is due, or under way"
        part = self._under_way.part()
        if self._under_way.done:
            self._under_way = None
        if not self._send(part, snapshot=begins):
            self.begin()
        return True

    def end(self) -> None:
        """Stop making snapshots, and drop the `snapshot` callback, which may refer to us."""
        self._snapshot, self._under_way = _nothing, None

    def mark(self, now: float) -> None:
        """Repeat the last number, if it is time for that. Call it regularly."""
        if now >= self._mark_at and not self._lacking:
            self._mark_at = now + MARKS_SECONDS
            self._socket.send(pack_message(self._told.mark()))

    def _send(self, changes: tuple[Change, ...], *, snapshot: bool = False) -> bool:
        self._mark_at = time.monotonic() + MARK_SECONDS
        return self._socket.send(pack_message(self._told.changes(changes, snapshot=snapshot)))


def _nothing() -> SnapshotParts:
    return SnapshotParts(())
