"""Memory of pools between PID namespaces: the service passes on what is asked for, to nobody else; it keeps none."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest

from kvmarket.errors import MessageError, NotJoinedError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.descriptors import MOST_DESCRIPTORS
from kvmarket.registry.protocol.messages import (
    AskDescriptors,
    Descriptors,
    Join,
    PoolRecord,
    unpack_reply,
)
from kvmarket.registry.protocol.packets import PacketSocket
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.relay import Relay
from kvmarket.registry.service.session import Session
from tests.scarcity import descriptors


@pytest.fixture
def market():
    """A relay, and what joins it: sessions, each with the engine's end of its connection."""
    exchange, ends = Exchange(), []

    def member(pool: str, space: str = "space") -> SimpleNamespace:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        session, engine = Session(PacketSocket(one)), PacketSocket(other)
        ends.extend([session.socket, engine])
        if pool:
            me = Process.current()
            exchange.join(session, pool, Join(me, space, "geometry", 4, (PoolRecord(pool, 8, (me,), b""),)))
        return SimpleNamespace(session=session, engine=engine)

    yield SimpleNamespace(relay=Relay(exchange), member=member, exchange=exchange)
    for end in ends:
        end.close()


def heard(member: SimpleNamespace) -> list[tuple[object, int]]:
    """What the engine got: each message, and how many descriptors came with it."""
    found = []
    while (frame := member.engine.receive()) is not None:
        came = member.engine.take_descriptors()
        found.append((unpack_reply(frame), len(came)))
        for fd in came:
            os.close(fd)
    return found


def test_who_asked_gets_it_and_nobody_else(market):
    owner, one, two, third = (market.member(pool) for pool in ("pool", "a", "b", "c"))
    ask, told = AskDescriptors("pool"), Descriptors("pool", 0, 2)
    for each in (one, two, one):
        market.relay.ask(each.session, ask)
    assert heard(owner) == [(ask, 0)] * 3, "asked again, it is passed on again: what was on its way may be lost"
    before = descriptors()
    market.relay.tell(owner.session, told, [0, 1])
    assert heard(one) == heard(two) == [(told, 2)] and heard(third) == [] and descriptors() == before
    market.relay.tell(owner.session, told, [0, 1])
    assert heard(one) == [], "it has got all"


def test_a_long_pool_comes_in_parts(market):
    owner, one = market.member("pool"), market.member("a")
    market.relay.ask(one.session, AskDescriptors("pool"))
    first, last = (Descriptors("pool", at, MOST_DESCRIPTORS + 1) for at in (0, MOST_DESCRIPTORS))
    market.relay.tell(owner.session, first, [0] * MOST_DESCRIPTORS)
    market.relay.tell(owner.session, last, [0])
    assert heard(one) == [(first, MOST_DESCRIPTORS), (last, 1)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_not_all_that_is_said_has_come(market, count):
    owner, one = market.member("pool"), market.member("a")
    market.relay.ask(one.session, AskDescriptors("pool"))
    heard(owner)
    with pytest.raises(MessageError, match="open files"):
        market.relay.tell(owner.session, Descriptors("pool", 0, 2), [0] * count)
    assert heard(one) == []


def test_nothing_goes_to_another_space_or_for_another_engine(market):
    owner, one, stranger = market.member("pool"), market.member("a", "other space"), market.member("")
    market.relay.ask(one.session, AskDescriptors("pool"))
    market.relay.ask(one.session, AskDescriptors("of nobody"))
    assert heard(owner) == []
    with pytest.raises(NotJoinedError):
        market.relay.ask(stranger.session, AskDescriptors("pool"))
    for liar in (one, stranger):
        with pytest.raises((MessageError, NotJoinedError)):
            market.relay.tell(liar.session, Descriptors("pool", 0, 1), [0])


def test_who_has_gone_is_sent_nothing(market):
    owner, one, two = (market.member(pool) for pool in ("pool", "a", "b"))
    for each in (one, two):
        market.relay.ask(each.session, AskDescriptors("pool"))
    market.relay.forget(one.session)
    market.relay.tell(owner.session, Descriptors("pool", 0, 1), [0])
    assert heard(one) == [] and len(heard(two)) == 1
