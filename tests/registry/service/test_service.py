"""The service over its socket: bad input is answered or dropped, and never changes or stops it."""

from __future__ import annotations

import os
import random
import threading
import time

import msgspec
import numpy as np
import pytest
import xxhash

from kvmarket import counters
from kvmarket.errors import AddressError, MessageError, VersionError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import (
    PROTOCOL,
    Again,
    Changes,
    Join,
    Joined,
    OfferBlocks,
    PoolRecord,
    PoolTold,
    Refused,
    SnapshotEnd,
    pack_message,
    unpack_reply,
    unpack_request,
)
from kvmarket.registry.protocol.packets import dial
from kvmarket.registry.protocol.status import AskStatus, Status
from kvmarket.registry.service.service import Service
from kvmarket.registry.space import feed

OVERFLOW = "message_dropped{the other side does not keep up; all that stands is told again}"
NOT_LET_IN = "not_let_in{no descriptor is left; raise the limit of open files}"


@pytest.fixture
def place(own_address):
    """A market whose service runs on a thread, until nobody has been in it for a moment."""
    place = Address(own_address)
    service = Service(place, idle_exit=1.0)
    thread = threading.Thread(target=lambda: (service.run(), service.close()))
    thread.start()
    yield place
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert not place.socket.exists()
    assert not place.lock.exists()


class Line:
    """A raw connection."""

    def __init__(self, place: Address) -> None:
        self.socket = dial(place.socket)
        self.number = 0  # of the last change heard

    def ask(self, frame: bytes):
        self.tell(frame)
        return self.hear()

    def hear(self):
        frame = self.socket.wait(5.0)
        assert frame is not None, "no answer"
        return unpack_reply(frame)

    def hear_until(self, wanted) -> list:
        """The changes that the service tells, up to one that is `wanted`; their messages' numbers must follow."""
        told, end = [], time.monotonic() + 10
        while not any(map(wanted, told)):
            assert time.monotonic() < end
            message = self.hear()
            assert isinstance(message, Changes)
            if not message.empty:
                assert message.sequence == self.number + 1
                self.number = message.sequence
                told += ["snapshot", *message.changes] if message.snapshot else message.changes
        return told

    def hear_other(self):
        """The next message that is no change."""
        while isinstance(answer := self.hear(), Changes):
            pass
        return answer

    def ask_status(self) -> Status:
        """What the market holds; whatever else comes before the answer is passed over."""
        self.tell(pack_message(AskStatus()))
        while not isinstance(answer := self.hear(), Status):
            pass
        return answer

    def tell(self, frame: bytes) -> None:
        assert self.socket.send(frame)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def join_message(pool: str = "pool") -> Join:
    me = Process.current()
    return Join(me, "space", "geometry", 4, (PoolRecord(pool, 8, (me,), b""),))


def offer_of(pool: str, slot: int, generation: int = 1) -> OfferBlocks:
    return OfferBlocks(pool, "", bytes(16), 0, bytes([slot]) + bytes(7), 1, bytes([generation]) + bytes(7))


def begin(line: Line, pool: str = "pool") -> None:
    """Join, and say that nothing is on offer yet."""
    assert isinstance(line.ask(pack_message(join_message(pool))), Joined)
    line.tell(pack_message(Changes(1, (SnapshotEnd((pool,)),), snapshot=True)))


def test_join_status_leave(place):
    with Line(place) as line:
        joined = line.ask(pack_message(join_message()))
        assert isinstance(joined, Joined)
        assert joined.service.pid == os.getpid()
        assert line.hear() == Changes(1, (SnapshotEnd(()),), snapshot=True)
        status = line.ask_status()
        assert [member.pid for member in status.members] == [os.getpid()]
        assert status.counters["Join"] == 1
        with Line(place) as other:
            line.socket.close()
            deadline = time.monotonic() + 10
            while other.ask_status().members:
                assert time.monotonic() < deadline


def test_changes_are_numbered_and_a_snapshot_has_them_all(place):
    with Line(place) as line, Line(place) as other:
        begin(other, "other")
        begin(line)
        heard = line.hear_until(lambda change: isinstance(change, SnapshotEnd))
        assert [type(change).__name__ for change in heard[:3]] == ["str", "PoolJoined", "SnapshotEnd"]
        for slot in range(3):
            line.tell(pack_message(Changes(2 + slot, (offer_of("pool", slot),))))  # not told to itself
            other.tell(pack_message(Changes(2 + slot, (offer_of("other", slot),))))
            assert line.hear_until(lambda change: isinstance(change, OfferBlocks))[-1] == offer_of("other", slot)
        line.tell(pack_message(Again(line.number)))
        again = line.hear_until(lambda change: isinstance(change, SnapshotEnd))
        assert [type(change).__name__ for change in again] == ["str", "PoolJoined", "Snapshot", "SnapshotEnd"]
        assert len(again[2].offers) == 3 * 5 * 8


def test_what_a_member_says_counts_only_where_nothing_is_missing(place):
    """From a gap on nothing is heeded, and a snapshot is asked for until it begins."""
    with Line(place) as line, Line(place) as other:
        begin(other, "other")
        begin(line)
        line.tell(pack_message(Changes(3, (offer_of("pool", 0),))))
        while not isinstance(answer := line.hear(), Again):
            pass
        assert answer == Again(3)
        line.tell(pack_message(Changes(4, (offer_of("pool", 1),))))
        assert isinstance(line.hear_other(), Again), "once more: it may be lost"
        assert line.ask_status().blocks == 0
        line.tell(pack_message(Changes(5, (offer_of("pool", 2),), snapshot=True)))
        line.tell(pack_message(Changes(6, (SnapshotEnd(("pool",)),))))
        assert line.ask_status().blocks == 1
        line.tell(pack_message(Changes(6, (offer_of("pool", 3),))))  # doubled
        assert line.ask_status().blocks == 1


def test_the_last_message_lost_is_seen_by_the_number_told_again(place):
    with Line(place) as line:
        begin(line)
        line.tell(pack_message(Changes(2)))
        while not isinstance(answer := line.hear(), Again):
            pass
        assert answer == Again(2)


@pytest.mark.parametrize("message", [Again(0), Changes(1, (offer_of("pool", 0),), snapshot=True)])
def test_a_stranger_is_not_heard(place, message, caplog):
    with Line(place) as line:
        assert line.ask(pack_message(message)).kind == "NotJoinedError"
        assert line.ask_status().counters["NotJoinedError"] == 1
    assert [record.getMessage() for record in caplog.records if "NotJoinedError" in record.getMessage()]


def test_an_engine_says_nothing_that_only_the_service_says(place):
    with Line(place) as line:
        begin(line)
        line.tell(pack_message(Changes(2, (PoolTold("pool"),))))
        assert line.hear_other().kind == "MessageError"


def test_whoever_joins_anew_takes_the_place_of_who_heard_no_answer(place):
    """Its former connection is closed, so that it would join again if it were the one that counts."""
    with Line(place) as former, Line(place) as line:
        for each in (former, line):
            assert isinstance(each.ask(pack_message(join_message())), Joined)
        assert len(line.ask_status().members) == 1
        deadline = time.monotonic() + 10
        while not former.socket.closed:
            former.socket.receive()
            assert time.monotonic() < deadline


def test_an_engine_that_does_not_read_keeps_nobody_waiting(place, monkeypatch):
    """What it missed it is told in a snapshot, when it reads again."""
    monkeypatch.setattr(feed, "MOST_BYTES", 100_000)
    with Line(place) as line, Line(place) as deaf:
        begin(deaf, "deaf")
        begin(line)
        tokens, number = bytes(16 * 64), 1
        before = counters.snapshot().get(OVERFLOW, 0)
        while counters.snapshot().get(OVERFLOW, 0) == before:
            number += 1
            offer = OfferBlocks("pool", "", tokens, 63, bytes(8), number, b"\1" + bytes(7))
            line.tell(pack_message(Changes(number, (offer,))))
            line.ask_status()
        heard, end = [deaf.hear()], time.monotonic() + 10
        while not heard[-1].snapshot or len(heard) < 5:
            heard.append(deaf.hear())
            assert time.monotonic() < end
        offers = [each for message in heard for each in message.changes if isinstance(each, OfferBlocks)]
        assert len(offers) < number - 1, "of the offers that were told at least one was missed"
        while not isinstance(heard[-1].changes[-1], SnapshotEnd):
            heard.append(deaf.hear())
        pool, branches, _ = (change for message in heard[-3:] for change in message.changes)
        assert pool.record.pool == "pool"
        assert np.frombuffer(branches.offers, np.int64)[3] == number, "the epoch of the last offer"


def test_a_second_service_is_refused(place):
    with pytest.raises(AddressError, match="already holds"):
        Service(place)


def test_bad_frames_are_refused_and_change_nothing(place):
    chance = random.Random(5)
    good = pack_message(join_message()).removeprefix(PROTOCOL)
    with Line(place) as line:
        begin(line)
        assert line.hear().snapshot
        bad = [
            b"kvmarket/2\n" + good,
            b"GET / HTTP/1.1",
            b"",
            PROTOCOL,
            PROTOCOL + good + b"more",
            PROTOCOL + good[:-1],
            pack_message(join_message())[:-1],
            pack_message(join_message())[:40] + pack_message(join_message())[50:],
            sound(b"\xc1"),
            sound(msgspec.msgpack.encode({"type": "nothing"})),
            sound(msgspec.msgpack.encode({"type": "retire", "pool": "p", "slots": None})),
            *(sound(bytes(chance.randrange(256) for _ in range(chance.randrange(40)))) for _ in range(200)),
            *(PROTOCOL + _mutated(good, chance) for _ in range(200)),
            pack_message(join_message()),
            pack_message(Changes(2, (OfferBlocks("pool", "", b"123", 0, bytes(8), 1, bytes(8)),))),
            pack_message(Changes(3, (offer_of("somebody's", 0),))),
        ]
        for frame in bad:
            line.tell(frame)
            assert isinstance(line.hear_other(), Refused)
        status = line.ask(pack_message(AskStatus()))
        assert len(status.members) == 1


def sound(body: bytes) -> bytes:
    """A frame whose checksum is right, whatever is in it."""
    return PROTOCOL + xxhash.xxh3_64_digest(body) + body


def _mutated(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def test_frames_of_another_version_are_told_apart():
    with pytest.raises(VersionError, match="side kvmarket/999; run one version"):
        unpack_reply(b"kvmarket/999\n\x80")
    for frame in (b"kvmarket/5", b"kvmarket/" + b"9" * 100, b"kvmarket/\xff"):
        with pytest.raises(VersionError):
            unpack_request(frame)
    for frame in (b"", b"x" * 100, b"kvmarket", PROTOCOL, PROTOCOL + b"\xc1"):
        with pytest.raises(MessageError):
            unpack_request(frame)
