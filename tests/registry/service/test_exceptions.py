"""An exception that nobody expected ends neither the thread that watches a market nor its service; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvmarket import counters
from kvmarket.registry.client import client
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.service import Service
from kvmarket.registry.service.session import Sessions
from tests.model_engine import prompt, until


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], list[int]]:
    """Have a method raise the next two times that it is called; returns what grows by one each time."""

    def make(of: type, name: str) -> list[int]:
        whole, raised = getattr(of, name), []

        def failing(*arguments: Any) -> Any:
            if len(raised) < 2:
                raised.append(len(raised))
                raise RuntimeError("a test")
            return whole(*arguments)

        monkeypatch.setattr(of, name, failing)
        return raised

    return make


def survived(what: str) -> int:
    return sum(times for name, times in counters.snapshot().items() if name.startswith("thread_survived{" + what))


def test_of_the_watching_thread(engine, peer, fails, monkeypatch):
    monkeypatch.setattr(client, "AGAIN_SECONDS", 0.05)
    before = survived("the thread that watches the market")
    raised = fails(client.Client, "_put_in")
    until(lambda: len(raised) == 2)
    peer.publish(tokens := prompt(16, 1), [0, 1, 2, 3])
    until(lambda: engine.market.match(tokens).blocks == 4)
    assert survived("the thread that watches the market") == before + 2
    assert engine.take(tokens, [0, 1, 2, 3]) == 4


def test_of_the_service_in_a_message(engine, peer, fails):
    """Whoever said it joins again, and tells all that stands; nobody else notices."""
    engine.publish(older := prompt(16, 2), [4, 5, 6, 7])
    until(lambda: peer.take(older, [0, 1, 2, 3]) == 4)
    before, line = survived("a message of an engine"), engine.market._control._client._connection
    raised = fails(Exchange, "hear")
    engine.publish(tokens := prompt(16, 3), [0, 1, 2, 3])
    until(lambda: raised)
    until(lambda: peer.take(tokens, [4, 5, 6, 7]) == 4)
    assert survived("a message of an engine") >= before + 1
    assert engine.market._control._client._connection is not line
    assert peer.take(older, [0, 1, 2, 3]) == 4


@pytest.mark.parametrize(("of", "name"), [(Sessions, "expect"), (Exchange, "tell"), (Service, "_turn")])
def test_of_the_service_in_its_own_affairs(engine, peer, fails, of, name):
    before = survived("the service")
    raised = fails(of, name)
    engine.publish(tokens := prompt(16, len(name) + 100), [0, 1, 2, 3])
    until(lambda: len(raised) == 2)
    until(lambda: peer.take(tokens, [4, 5, 6, 7]) == 4)
    assert survived("the service") == before + 2


def test_a_service_rests_after_a_failure_and_at_no_other_time(monkeypatch):
    """A turn that always raises would keep a core busy; one that does not must not wait."""
    naps, turns = [], []
    made = Service.__new__(Service)
    made._stopped = False

    def turn() -> None:
        turns.append(len(turns))
        made._stopped = len(turns) == 4
        if len(turns) == 2:
            raise RuntimeError("a test")

    monkeypatch.setattr(made, "_turn", turn)
    monkeypatch.setattr("kvmarket.registry.service.service.time.sleep", naps.append)
    made.run()
    assert len(turns) == 4 and len(naps) == 1
