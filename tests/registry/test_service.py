"""The service over its socket: bad input is answered or dropped, and never changes or stops it."""

from __future__ import annotations

import os
import random
import threading
import time

import msgspec
import pytest

from kvmarket.errors import AddressError, MessageError, VersionError
from kvmarket.registry.address import Address
from kvmarket.registry.messages import (
    PROTOCOL,
    AskStatus,
    Join,
    Joined,
    OfferBlocks,
    PoolRecord,
    Refused,
    Snapshot,
    Status,
    Sync,
    pack_message,
    unpack_reply,
    unpack_request,
)
from kvmarket.registry.service import WAITING_MESSAGES, Service
from kvmarket.registry.wire import dial
from kvmarket.shared_file import Process


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
        self.wire = dial(place.socket, 10)

    def ask(self, frame: bytes):
        self.tell(frame)
        return self.hear()

    def hear(self):
        frame = self.wire.wait(5.0)
        assert frame is not None, "no answer"
        return unpack_reply(frame)

    def ask_status(self) -> Status:
        """What the market holds; whatever else comes before the answer is passed over."""
        self.tell(pack_message(AskStatus()))
        while not isinstance(answer := self.hear(), Status):
            pass
        return answer

    def tell(self, frame: bytes) -> None:
        assert self.wire.send(frame)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()


def join_message(pool: str = "pool") -> Join:
    me = Process.current()
    return Join(me, "space", "geometry", 4, (PoolRecord(pool, 8, (me,), b""),))


def test_join_status_leave(place):
    with Line(place) as line:
        joined = line.ask(pack_message(join_message()))
        assert isinstance(joined, Joined)
        assert joined.service.pid == os.getpid()
        snapshot = line.hear()
        assert isinstance(snapshot, Snapshot)
        assert snapshot.first and snapshot.last
        assert [change.record.pool for change in snapshot.changes] == ["pool"]
        status = line.ask(pack_message(AskStatus()))
        assert isinstance(status, Status)
        assert [member.pid for member in status.members] == [os.getpid()]
        with Line(place) as other:
            line.wire.close()
            deadline = time.monotonic() + 10
            while other.ask_status().members:
                assert time.monotonic() < deadline


def test_changes_are_numbered_and_a_snapshot_has_them_all(place):
    with Line(place) as line, Line(place) as other:
        assert isinstance(other.ask(pack_message(join_message("other"))), Joined)
        assert isinstance(line.ask(pack_message(join_message())), Joined)
        first = line.hear().sequence
        generation = b"\1" + bytes(7)
        for slot in range(3):
            slots = bytes([slot]) + bytes(7)
            line.tell(pack_message(OfferBlocks("pool", "", bytes(16), 0, slots, 1, generation)))  # not told to itself
            other.tell(pack_message(OfferBlocks("other", "", bytes(16), 0, slots, 1, generation)))
            heard = line.hear()
            assert heard.sequence == first + 1 + slot
            assert [(change.pool, change.slots) for change in heard.changes] == [("other", slots)]
        snapshot = line.ask(pack_message(Sync()))
        assert snapshot.sequence == first + 3
        assert len(snapshot.changes) == 8


def test_a_stranger_gets_no_snapshot(place):
    with Line(place) as line:
        assert line.ask(pack_message(Sync())).kind == "NotJoinedError"


def test_whoever_joins_anew_takes_the_place_of_who_heard_no_answer(place):
    """Its former connection is closed, so that it would join again if it were the one that counts."""
    with Line(place) as former, Line(place) as line:
        for each in (former, line):
            assert isinstance(each.ask(pack_message(join_message())), Joined)
        assert len(line.ask_status().members) == 1
        deadline = time.monotonic() + 10
        while not former.wire.closed:
            former.wire.receive()
            assert time.monotonic() < deadline


def test_an_engine_that_does_not_read_keeps_nobody_waiting(place):
    """It misses some, and hears so when it reads again."""
    slots, generation = bytes(8), b"\1" + bytes(7)
    with Line(place) as line, Line(place) as deaf:
        assert isinstance(deaf.ask(pack_message(join_message("deaf"))), Joined)
        assert isinstance(line.ask(pack_message(join_message())), Joined)
        offer = OfferBlocks("pool", "", bytes(16 * 64), 63, slots, 1, generation)
        while not line.ask_status().counters.get("reply_dropped"):
            line.tell(pack_message(offer))
        heard, end = [], time.monotonic() + 10
        while not heard or heard[-1].changes:  # nothing is told but the number
            heard.append(deaf.hear())
            assert time.monotonic() < end
        assert len(heard) > WAITING_MESSAGES and heard[-1].sequence > heard[-2].sequence
        while (answer := deaf.ask(pack_message(Sync()))) and not isinstance(answer, Snapshot):
            pass
        assert answer.changes


def test_a_second_service_is_refused(place):
    with pytest.raises(AddressError, match="already holds"):
        Service(place)


def test_bad_frames_are_refused_and_change_nothing(place):
    chance = random.Random(5)
    good = pack_message(join_message()).removeprefix(PROTOCOL)
    with Line(place) as line:
        assert isinstance(line.ask(pack_message(join_message())), Joined)
        assert isinstance(line.hear(), Snapshot)
        bad = [
            b"kvmarket/2\n" + good,
            b"GET / HTTP/1.1",
            b"",
            PROTOCOL,
            PROTOCOL + good + b"more",
            PROTOCOL + b"\xc1",
            PROTOCOL + msgspec.msgpack.encode({"type": "nothing"}),
            PROTOCOL + msgspec.msgpack.encode({"type": "retire", "pool": "", "slots": None}),
            *(PROTOCOL + bytes(chance.randrange(256) for _ in range(chance.randrange(40))) for _ in range(200)),
            *(PROTOCOL + _mutated(good, chance) for _ in range(200)),
            pack_message(join_message()),
            pack_message(OfferBlocks("pool", "", b"123", 0, bytes(8), 1, bytes(8))),
            pack_message(OfferBlocks("somebody's", "", bytes(16), 0, bytes(8), 1, b"\1" + bytes(7))),
        ]
        refused = sum(isinstance(line.ask(frame), Refused) for frame in bad)
        assert refused >= len(bad) - 200
        status = line.ask(pack_message(AskStatus()))
        assert len(status.members) == 1


def _mutated(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def test_frames_of_another_version_are_told_apart():
    with pytest.raises(VersionError, match="side kvmarket/9; run one version"):
        unpack_reply(b"kvmarket/9\n\x80")
    for frame in (b"kvmarket/5", b"kvmarket/" + b"9" * 100, b"kvmarket/\xff"):
        with pytest.raises(VersionError):
            unpack_request(frame)
    for frame in (b"", b"x" * 100, b"kvmarket", PROTOCOL, PROTOCOL + b"\xc1"):
        with pytest.raises(MessageError):
            unpack_request(frame)


def test_a_service_without_descriptors_serves_who_is_in(own_address, monkeypatch):
    """Whoever knocks is let in when there are some again."""
    service = Service(Address(own_address), idle_exit=1.0)
    thread = threading.Thread(target=lambda: (service.run(), service.close()))
    thread.start()
    place = Address(own_address)
    with Line(place) as member:
        assert isinstance(member.ask(pack_message(join_message())), Joined)
        assert isinstance(member.hear(), Snapshot)
        with monkeypatch.context() as patched:
            patched.setattr(service._door, "accept", lambda most: os.dup(-1))  # fails as when there are none left
            with Line(place) as late:
                late.tell(pack_message(AskStatus()))
                start, asked = time.monotonic(), 0
                while time.monotonic() < start + 0.5:
                    asked += isinstance(member.ask(pack_message(AskStatus())), Status)
                assert asked > 50
                assert 1 <= service._counters["not_let_in"] < 10
                patched.undo()
                assert isinstance(late.hear(), Status)
    thread.join(timeout=30)
    assert not thread.is_alive()
