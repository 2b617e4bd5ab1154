"""A service that has no descriptors left serves who is in."""

from __future__ import annotations

import math
import os
import threading
import time
from types import SimpleNamespace

from kvmarket import counters
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import Changes, Joined, pack_message
from kvmarket.registry.protocol.status import AskStatus, Report, Status
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.service import Service
from tests.registry.service.test_service import NOT_LET_IN, Line, begin, join_message


def test_a_service_without_descriptors_serves_who_is_in(own_address, monkeypatch):
    """Whoever knocks is let in when there are some again."""
    service = Service(Address(own_address), idle_exit=1.0)
    thread = threading.Thread(target=lambda: (service.run(), service.close()))
    thread.start()
    place = Address(own_address)
    with Line(place) as member:
        assert isinstance(member.ask(pack_message(join_message())), Joined)
        assert isinstance(member.hear(), Changes)
        with monkeypatch.context() as patched:
            patched.setattr(service._listener, "accept", lambda: os.dup(-1))  # fails as when there are none left
            before = counters.snapshot().get(NOT_LET_IN, 0)
            with Line(place) as late:
                late.tell(pack_message(AskStatus()))
                start, asked = time.monotonic(), 0
                while time.monotonic() < start + 0.5:
                    asked += bool(member.ask_status())
                assert asked > 50
                assert 1 <= counters.snapshot()[NOT_LET_IN] - before < 10
                patched.undo()
                assert isinstance(late.hear(), Status)
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_the_first_space_that_is_due_counts():
    exchange = Exchange()
    assert exchange.due() == math.inf
    for name, due in (("a", 0.7), ("b", 0.2), ("c", math.inf)):
        exchange._streams[name] = SimpleNamespace(due=lambda due=due: due)
    assert exchange.due() == 0.2


def test_a_report_is_of_a_member_alone(market_address):
    with Line(Address(market_address)) as line:
        line.tell(pack_message(Report({"bytes_fetched": 7})))
        assert line.hear().kind == "NotJoinedError"
        begin(line)
        line.tell(pack_message(Report({"bytes_fetched": 7})))
        status = line.ask_status()
        assert [member.counters for member in status.members if member.space == "space"] == [{"bytes_fetched": 7}]
        assert ("space", ()) in [(space.name, space.facts) for space in status.spaces]
