"""What one side of a connection tells the other: changes as they come, and a snapshot where some may be missing.

Both directions use it. It never waits: what the connection does not take is not told, and a snapshot makes up for it
when there is room again. So what waits is bounded in bytes, and nothing is sent that rests on what was not.
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

MOST_BYTES = 8 << 20  # that wait for the other end; beyond it a change is not sent
AHEAD_BYTES = 1 << 18  # that wait before the next part of a snapshot is made
MARK_SECONDS, MARKS_SECONDS = 0.1, 1.0  # after which the last number is told again, and again: its loss is seen so


class Feed:
    """The numbered changes to one listener. Not thread-safe."""

    def __init__(self, sock: PacketSocket, snapshot: Callable[[], SnapshotParts]) -> None:
        """Over `sock`; a first snapshot is due, and nothing is told before it begins."""
        self._socket, self._snapshot = sock, snapshot
        self._told = Told()
        self._under_way: SnapshotParts | None = None
        self._lacking = True  # whether a snapshot is to begin: until then nothing is told
        self._mark_at = math.inf

    @property
    def telling(self) -> bool:
        """Whether a snapshot is under way, or due."""
        return self._lacking or self._under_way is not None

    @property
    def ready(self) -> bool:
        """Whether `go_on` would tell something now."""
        return self.telling and self._socket.waiting < AHEAD_BYTES

    def tell(self, *changes: Change) -> bool:
        """Tell what has changed; False where it was not sent: a snapshot will tell it. Costs 10 us and 1 us a KiB."""
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
        """The listener lacks something: begin a snapshot when there is room. Nothing is told before."""
        self._lacking, self._under_way = True, None

    def asked(self, again: Again) -> bool:
        """The listener asks for a snapshot; whether one is to begin for it: not where one has begun since."""
        if not self._told.answers(again):
            self.begin()
            return True
        return False

    def go_on(self) -> bool:
        """Tell the next part of a snapshot, where there is room; whether that told anything. Costs some 0.5 ms."""
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
        """Nothing is told any more; let go of who makes the snapshots, which holds us."""
        self._snapshot, self._under_way = _nothing, None

    def mark(self, now: float) -> None:
        """Tell the last number once more, where it is time for that; to be called every now and then."""
        if now >= self._mark_at and not self._lacking:
            self._mark_at = now + MARKS_SECONDS
            self._socket.send(pack_message(self._told.mark()))

    def _send(self, changes: tuple[Change, ...], *, snapshot: bool = False) -> bool:
        self._mark_at = time.monotonic() + MARK_SECONDS
        return self._socket.send(pack_message(self._told.changes(changes, snapshot=snapshot)))


def _nothing() -> SnapshotParts:
    return SnapshotParts(())
