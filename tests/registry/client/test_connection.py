"""A connection of an engine: what it does with what comes, and what it says by itself."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from kvmarket import counters
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client import connection as connection_module
from kvmarket.registry.client.connection import Connection
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol.messages import (
    PROTOCOL,
    Again,
    Changes,
    Join,
    PoolGone,
    PoolRecord,
    SnapshotEnd,
    pack_message,
    unpack_request,
)
from kvmarket.registry.protocol.packets import PacketSocket
from kvmarket.registry.protocol.status import Report
from kvmarket.registry.space import feed as feed_module
from kvmarket.registry.space.snapshot import SnapshotParts

ME = Process(1, 1, 1)
JOIN = Join(ME, "space", "geometry", 4, (PoolRecord("own", 8, (ME,), b""),))


@pytest.fixture
def pair() -> Iterator[SimpleNamespace]:
    """A connection, its replica, and the service's end of the connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    replica, service = Replica(4, JOIN.pools), PacketSocket(theirs)
    foreign = ForeignPools(lambda _pool: ((), ()))
    connection = Connection(PacketSocket(ours), JOIN, replica, lambda: SnapshotParts(()), foreign)
    assert unpack_request(service.receive()) == JOIN
    yield SimpleNamespace(connection=connection, replica=replica, service=service)
    connection.close()
    service.close()


def tell(pair: SimpleNamespace, number: int, *changes: object, snapshot: bool = False) -> None:
    assert pair.service.send(pack_message(Changes(number, changes, snapshot=snapshot)))


def heard(pair: SimpleNamespace) -> list[object]:
    found = []
    while (frame := pair.service.receive()) is not None:
        found.append(unpack_request(frame))
    return found


def test_one_look_takes_in_all_that_has_come(pair):
    tell(pair, 1, SnapshotEnd(()), snapshot=True)
    for number in range(2, 6):
        tell(pair, number, PoolGone(f"pool {number}"))
    assert pair.connection.drain(time.perf_counter() + 5) == (True, [])
    assert pair.replica.whole and not pair.replica.pending
    tell(pair, 6, PoolGone("pool"))
    assert not [message for message in heard(pair) if isinstance(message, Again)], "nothing was missed"


def test_what_cannot_be_read_keeps_nothing_back(pair):
    assert pair.service.send(PROTOCOL + b"nonsense")
    tell(pair, 1, SnapshotEnd(()), snapshot=True)
    assert pair.connection.drain(time.perf_counter() + 5) == (True, [])
    assert pair.replica.whole


def test_a_look_ends_when_its_time_is_over(pair):
    for number in range(1, 6):
        tell(pair, number, SnapshotEnd(()), snapshot=True)
    looks = 0
    while not pair.connection.drain(time.perf_counter())[0]:
        looks += 1
    assert looks >= 5 and pair.replica.whole


def test_what_was_missed_is_asked_for(pair):
    tell(pair, 1, SnapshotEnd(()), snapshot=True)
    tell(pair, 3, PoolGone("pool"))
    pair.connection.drain(time.perf_counter() + 5)
    assert [message for message in heard(pair) if isinstance(message, Again)] == [Again(3)]


def test_the_last_number_is_told_again(pair, monkeypatch):
    """So that the loss of the last message is noticed."""
    monkeypatch.setattr(feed_module, "MARK_SECONDS", 0.0)
    assert pair.connection.feed.go_on()
    heard(pair)
    pair.connection.drain(time.perf_counter() + 5)
    assert heard(pair) == [Changes(1)]


def test_no_answer_is_no_membership(pair, monkeypatch):
    monkeypatch.setattr("kvmarket.registry.client.connection.ANSWER_SECONDS", 0.05)
    assert pair.connection.joined(threading.Event()) is False and pair.connection.pidfd == -1


def test_the_counters_of_the_process_are_reported_when_they_have_changed(pair, monkeypatch):
    def reported() -> list[object]:
        pair.connection.drain(time.perf_counter() + 5)
        return [message for message in heard(pair) if isinstance(message, Report)]

    assert reported() == [], "not before a second has passed"
    monkeypatch.setattr(connection_module, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(pair.connection, "_report_at", 0.0)
    counters.add("reported_in_a_test")
    (first,) = reported()
    assert first.counters["reported_in_a_test"] == counters.snapshot()["reported_in_a_test"]
    assert reported() == []
    counters.add("reported_in_a_test")
    (second,) = reported()
    assert second.counters["reported_in_a_test"] == first.counters["reported_in_a_test"] + 1


def test_no_report_is_sent_behind_what_the_service_does_not_take(pair, monkeypatch):
    monkeypatch.setattr(pair.connection, "_report_at", 0.0)
    counters.add("reported_in_a_test")
    while not pair.connection.socket.blocked:
        pair.connection.socket.send(bytes(1 << 16))
    waiting = pair.connection.socket.waiting
    pair.connection.look_after(time.monotonic())
    assert pair.connection.socket.waiting == waiting
