"""What the service does when nobody wants anything: it goes on with what is left at once, and else waits."""

from __future__ import annotations

import pytest

from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import POLL_SECONDS, SPARE_SECONDS, Service


@pytest.fixture
def service(own_address):
    service = Service(Address(own_address))
    service._wait = 0.0
    yield service
    service.close()


def test_a_turn_with_something_left_is_followed_by_another_at_once(service, monkeypatch):
    asked = []

    def collect(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) < 3

    monkeypatch.setattr(service._exchange.members, "collect", collect)
    waits = []
    for _ in range(3):
        service._turn()
        waits.append(service._wait)
        service._wait = 0.0
    assert asked == [SPARE_SECONDS] * 3 and waits == [0.0, 0.0, POLL_SECONDS]


@pytest.mark.parametrize(("tells", "collects"), [(True, False), (False, True), (True, True)])
def test_neither_a_snapshot_nor_what_is_collected_waits_for_the_other(service, monkeypatch, tells, collects):
    monkeypatch.setattr(service._exchange, "tell", lambda seconds: tells)
    monkeypatch.setattr(service._exchange.members, "collect", lambda seconds: collects)
    service._turn()
    assert service._wait == 0.0


def test_it_wakes_when_something_is_due(service, monkeypatch):
    monkeypatch.setattr(service._exchange, "due", lambda: POLL_SECONDS / 4)
    service._turn()
    assert service._wait == POLL_SECONDS / 4
    monkeypatch.setattr(service._exchange, "due", lambda: -1.0)
    service._wait = 0.0
    service._turn()
    assert service._wait == 0.0, "long since"
