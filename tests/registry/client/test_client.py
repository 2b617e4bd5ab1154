"""The watching thread of an engine: what it makes of a connection that ends."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

from kvmarket import counters
from kvmarket.errors import AddressError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client import client
from kvmarket.registry.client.client import Client
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol.messages import Changes, PoolGone, PoolJoined, PoolRecord
from kvmarket.registry.protocol.packets import PacketSocket


@pytest.fixture
def watching() -> Iterator[SimpleNamespace]:
    """A client whose connection has ended, without a service; writing to `death` is its service's end."""
    made: Client = Client.__new__(Client)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock, (dead, death) = PacketSocket(ours), os.pipe()
    theirs.close()
    assert sock.receive() is None and sock.closed
    made._closing, made._wake = threading.Event(), os.eventfd(0, os.EFD_NONBLOCK)
    made._connection = SimpleNamespace(socket=sock, pidfd=dead)
    yield SimpleNamespace(client=made, death=death, wake=made._wake)
    sock.close()
    for descriptor in (dead, death, made._wake):
        os.close(descriptor)


def test_who_closes_its_connection_and_is_dead_a_moment_later_has_died(watching):
    """The kernel closes the descriptors of a killed process before it is gone; on a busy machine 0.1 s before."""
    os.eventfd_write(watching.wake, 1)  # whoever has something to tell meanwhile
    threading.Timer(0.3, os.write, (watching.death, b"x")).start()
    start = time.monotonic()
    assert watching.client._vigil().dies(client.WATCH_SECONDS, client.AGAIN_SECONDS)
    assert 0.2 < time.monotonic() - start < client.AGAIN_SECONDS


def test_a_connection_that_broke_is_not_made_again_at_once(watching, monkeypatch):
    monkeypatch.setattr(client, "AGAIN_SECONDS", 0.3)
    os.eventfd_write(watching.wake, 1)
    start = time.monotonic()
    assert not watching.client._vigil().dies(client.WATCH_SECONDS, client.AGAIN_SECONDS)
    assert time.monotonic() - start > 0.29


def rejoining(monkeypatch, watching, service: str, *, fails: int = 0) -> tuple[list[float], list[str]]:
    """What `_rejoin` does where joining fails so often, and then leads to this service: when it tried, what it said."""
    tries, said = [], []
    made = watching.client

    def join() -> SimpleNamespace:
        tries.append(time.monotonic())
        if len(tries) <= fails:
            raise AddressError("a test")
        return SimpleNamespace(service=service)

    made._lock, made.home = threading.Lock(), SimpleNamespace(join=join)
    made._connection.service, made._connection.close = "a", lambda: said.append("closed")
    made._replica = SimpleNamespace(rejoin=lambda now: said.append("rejoined"))
    assert made._rejoin() is True
    assert made._connection.service == service
    return tries, said


def test_a_replica_hears_of_a_new_service_and_of_no_other(watching, monkeypatch):
    """Of a service that goes on, all that stands stands; with a dead one engines may have died, unseen."""
    sock, pidfd = watching.client._connection.socket, watching.client._connection.pidfd
    assert rejoining(monkeypatch, watching, "b")[1] == ["closed", "rejoined"]
    watching.client._connection = SimpleNamespace(socket=sock, pidfd=pidfd)
    assert rejoining(monkeypatch, watching, "a")[1] == ["closed"]


def test_who_cannot_join_again_waits_before_it_tries_once_more(watching, monkeypatch):
    tries, _ = rejoining(monkeypatch, watching, "b", fails=2)
    assert len(tries) == 3 and min(tries[1] - tries[0], tries[2] - tries[1]) > 0.3


def test_who_leaves_while_it_joins_again_has_not_failed(watching):
    made = watching.client

    def join() -> SimpleNamespace:
        made._closing.set()
        raise AddressError("the waiting was ended")

    made._lock, made.home = threading.Lock(), SimpleNamespace(join=join)
    made._connection.close = lambda: None
    before = counters.snapshot().get("rejoin_failed{AddressError}", 0)
    assert made._rejoin() is False
    assert counters.snapshot().get("rejoin_failed{AddressError}", 0) == before


def test_who_leaves_meanwhile_waits_no_longer(watching):
    watching.client._closing.set()
    start = time.monotonic()
    assert not watching.client._vigil().dies(client.WATCH_SECONDS, client.AGAIN_SECONDS)
    assert time.monotonic() - start < 0.5


def test_who_is_let_in_and_thrown_out_again_and_again_is_told(watching, monkeypatch):
    made, tries = watching.client, []

    def join() -> SimpleNamespace:
        tries.append(1)
        if len(tries) > 100:
            raise RuntimeError("it goes on for ever")
        return SimpleNamespace(close=lambda: time.sleep(0.01))

    monkeypatch.setattr(client, "START_SECONDS", 0.05)
    made.home, made._settled = SimpleNamespace(join=join, at=SimpleNamespace(log="log")), lambda *_: False
    with pytest.raises(AddressError, match="again and again; see log"):
        made._first_connection()
    assert len(tries) > 1


@pytest.fixture
def settling(watching) -> Iterator[SimpleNamespace]:
    """A client that has just been let in: what it still tells, hears and lacks, each until its list is at an end."""
    made, quiet = watching.client, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left = SimpleNamespace(to_tell=[], to_hear=[], to_get=[])
    made._replica, made._gone = SimpleNamespace(whole=True), []
    made._ask = lambda _connection: bool(left.to_get) and left.to_get.pop(0)
    feed = SimpleNamespace(telling=False)

    def go_on() -> None:
        feed.telling = bool(left.to_tell) and left.to_tell.pop(0)

    def drain(_end: float) -> tuple[bool, list[str]]:
        made._replica.whole = not left.to_hear or not left.to_hear.pop(0)
        return made._replica.whole, []

    feed.go_on = go_on
    with quiet[1], closing(PacketSocket(quiet[0])) as line:
        connection = SimpleNamespace(socket=line, pidfd=made._connection.pidfd, feed=feed, drain=drain)
        left.settled = lambda: made._settled(connection, time.monotonic() + 30)
        yield left


def test_who_joins_waits_for_the_memory_of_engines_elsewhere(settling, monkeypatch):
    """Else the first match would pass over their pools."""
    monkeypatch.setattr(client, "WATCH_SECONDS", 0.01)
    settling.to_get = [True, True, True]
    assert settling.settled() and settling.to_get == []
    settling.to_get = [True] * 1000
    monkeypatch.setattr(client, "LACKING_SECONDS", 0.05)
    assert settling.settled() and settling.to_get, "it goes on without that memory in the end"


def test_who_joins_tells_and_hears_all_without_waiting_in_between(settling, monkeypatch):
    monkeypatch.setattr(client, "WATCH_SECONDS", 5.0)
    start = time.monotonic()
    settling.to_tell, settling.to_hear = [True] * 3, [True] * 5
    assert settling.settled() and settling.to_tell == settling.to_hear == []
    settling.to_tell = [True] * 3
    assert settling.settled() and settling.to_tell == []
    assert time.monotonic() - start < 4.0


class Looked(ForeignPools):
    """Notes which pools it was to look at."""

    def look(self, new, socket, now):
        new = list(new)
        self.at.append([record.pool for record in new])
        return super().look(new, socket, now)


@pytest.fixture
def asking(watching) -> Iterator[SimpleNamespace]:
    """A client that asks for the memory of foreign pools: what it hears, and which pools a turn looks at."""
    made, memory = watching.client, Looked(lambda _pool: ((), ()))
    memory.at = []
    made._replica, made._foreign, made._far = Replica(4, (record("mine"),)), memory, []

    def hear(*changes: PoolJoined | PoolGone) -> list[str]:
        made._replica.receive(Changes(0, changes))
        gone = []
        while made._replica.pending:
            gone += made._replica.step()
        return gone

    def turn(gone: list[str] = ()) -> list[str]:
        made._foreign.forget(gone)
        made._ask(made._connection, gone)
        return made._foreign.at.pop()

    yield SimpleNamespace(client=made, hear=hear, turn=turn, foreign=memory)
    memory.close()


def record(pool: str) -> PoolRecord:
    elsewhere = Process(os.getpid(), 1, 1)
    return PoolRecord(pool, 8, (elsewhere,), b"")


def test_a_turn_looks_at_the_pools_that_are_new(asking):
    assert asking.hear(*(PoolJoined(record(name)) for name in ("a", "b", "mine"))) == []
    assert asking.turn() == ["a", "b"]
    assert asking.client.descriptors("a") is None, "they have not come"
    assert asking.turn() == []
    asking.hear(PoolJoined(record("c")), PoolJoined(record("d")))
    gone = asking.hear(PoolGone("c"))
    assert asking.turn(gone) == ["d"] and sorted(asking.foreign._lacking) == ["a", "b", "d"]
    assert asking.turn() == []


def test_a_pool_that_goes_and_comes_again_is_asked_for_again(asking):
    asking.hear(PoolJoined(record("a")))
    asking.turn()
    gone = asking.hear(PoolGone("a"), PoolJoined(record("a")))
    assert gone == ["a"] and asking.turn(gone) == ["a"] and "a" in asking.foreign._lacking
    gone = asking.hear(PoolGone("a"), PoolJoined(record("a")))
    asking.turn()  # as a new member does, which tells later of what has gone meanwhile
    assert asking.turn(gone) == ["a"] and "a" in asking.foreign._lacking
