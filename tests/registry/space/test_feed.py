"""What a listener is told: all that stands first, then what changes; where a queue was full, all that stands again."""

from __future__ import annotations

import random

import pytest

from kvmarket.registry.protocol.messages import Again, Changes, PoolGone, SnapshotEnd, unpack_reply
from kvmarket.registry.protocol.numbering import Heard
from kvmarket.registry.space import feed as feed_module
from kvmarket.registry.space.feed import Feed
from kvmarket.registry.space.snapshot import SnapshotParts
from tests.histories.lossy_socket import FAULTS, LossySocket, Weather, connection
from tests.registry.space.test_space import made, offer


class Pair:
    """A feed and who listens to it."""

    def __init__(self) -> None:
        self.space = made("pa")
        self.weather = Weather(random.Random(1), dict.fromkeys(FAULTS, 0.0))
        ours, self.theirs = connection(self.weather)
        self.socket: LossySocket = ours
        self.snapshots = 0
        self.feed = Feed(ours, self._snapshot)  # type: ignore[arg-type]
        self.heard = Heard(0.0)

    def _snapshot(self) -> SnapshotParts:
        self.snapshots += 1
        return SnapshotParts([self.space])

    def read(self) -> list[object]:
        """The changes that count of all that has come; a snapshot's begin is told by its name."""
        found: list[object] = []
        while (frame := self.theirs.receive()) is not None:
            message = unpack_reply(frame)
            assert isinstance(message, Changes)
            if self.heard.accept(message):
                found += ["begin"] if message.snapshot else []
                found += [type(change).__name__ for change in message.changes]
        return found

    def tell_all(self) -> None:
        while self.feed.telling:
            assert self.feed.go_on()


@pytest.fixture
def pair():
    return Pair()


def test_all_that_stands_first_and_then_what_changes(pair):
    offer(pair.space, "pa", [1, 2], [0])
    assert not pair.feed.tell(PoolGone("x")), "nothing before the snapshot begins"
    pair.tell_all()
    assert pair.feed.tell(PoolGone("x"))
    assert pair.read() == ["begin", "PoolJoined", "Snapshot", "SnapshotEnd", "PoolGone"]
    assert not pair.feed.go_on()


def test_changes_go_out_while_a_snapshot_is_under_way(pair, monkeypatch):
    monkeypatch.setattr("kvmarket.registry.space.snapshot.PART_RUNS", 1)
    for slot in range(3):
        offer(pair.space, "pa", [slot, slot], [slot])
    pair.feed.go_on()
    assert pair.feed.tell(PoolGone("x"))
    pair.tell_all()
    assert pair.read() == ["begin", "PoolJoined", "PoolGone", "Snapshot", "Snapshot", "Snapshot", "SnapshotEnd"]


def test_behind_a_full_queue_nothing_is_told_but_all_that_stands(pair):
    pair.tell_all()
    pair.read()
    pair.weather.room = 0
    assert not pair.feed.tell(PoolGone("lost"))
    pair.weather.room = 1 << 30
    assert not pair.feed.tell(PoolGone("rests on it")), "not before a snapshot has begun"
    assert pair.feed.ready
    pair.tell_all()
    assert pair.feed.tell(PoolGone("x"))
    assert pair.read() == ["begin", "PoolJoined", "SnapshotEnd", "PoolGone"]
    assert pair.snapshots == 2


def test_a_snapshot_waits_for_room(pair):
    pair.weather.room = 0
    assert not pair.feed.ready
    assert not pair.feed.go_on()
    assert pair.snapshots == 0


def test_a_snapshot_whose_part_could_not_be_sent_begins_anew(pair):
    pair.socket.closed = True
    assert not pair.feed.go_on()
    pair.socket.closed = False
    send, pair.socket.send = pair.socket.send, lambda _frame: False
    assert pair.feed.go_on()
    assert pair.feed.telling
    pair.socket.send = send
    pair.tell_all()
    assert pair.read() == ["begin", "PoolJoined", "SnapshotEnd"]
    assert pair.snapshots == 2


def test_who_asks_is_told_all_again_once(pair):
    pair.tell_all()
    assert pair.feed.asked(Again(1))
    pair.tell_all()
    assert not pair.feed.asked(Again(1)), "it had been asked for before this one began"
    assert not pair.feed.telling
    assert pair.snapshots == 2


def test_the_last_number_is_told_again(pair, monkeypatch):
    monkeypatch.setattr(feed_module.time, "monotonic", lambda: 10.0)
    pair.feed.mark(1e9)
    assert not pair.socket.out.queue, "nothing was told yet"
    pair.tell_all()
    pair.read()
    pair.feed.mark(10.0 + feed_module.MARK_SECONDS / 2)
    assert not pair.socket.out.queue
    pair.feed.mark(10.0 + feed_module.MARK_SECONDS)
    pair.feed.mark(10.1 + feed_module.MARK_SECONDS)
    assert [unpack_reply(frame) for frame in pair.socket.out.queue] == [Changes(2)]
    pair.feed.mark(11.2 + feed_module.MARKS_SECONDS)
    assert len(pair.socket.out.queue) == 2


def test_the_end_names_what_was_told_in_full(pair):
    pair.space.pools["pa"].told = True
    parts = SnapshotParts([pair.space])
    told = []
    while not parts.done:
        told += parts.part()
    assert told[-1] == SnapshotEnd(("pa",))
    pair.space.pools["pa"].told = False
    parts = SnapshotParts([pair.space])
    while not parts.done:
        last = parts.part()
    assert last == (SnapshotEnd(()),)
