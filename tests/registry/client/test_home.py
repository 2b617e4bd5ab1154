"""A rolling upgrade: engines of two versions side by side, each kind in a market of its own, together in the end."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest

from kvmarket import counters
from kvmarket.cli.top import ask_status
from kvmarket.errors import VersionError
from kvmarket.registry.client import home
from kvmarket.registry.client.connection import join_service
from kvmarket.registry.protocol import messages
from kvmarket.registry.protocol.address import Address
from tests.model_engine import ModelEngine, Peer, matched, prompt, until
from tests.registry.service.test_strangers import joining_with

BESIDE = "." + messages.PROTOCOL.decode().strip().rpartition("/")[2]  # of the address where newer engines meet


def _old_service(address: str, pipe) -> None:
    """A service of the version before, until it is told to end."""
    messages.PROTOCOL = b"kvmarket/8\n"
    from kvmarket.registry.service.service import Service

    service = Service(Address(address))
    thread = threading.Thread(target=service.run)
    thread.start()
    pipe.send("up")
    pipe.recv()
    service.stop()
    thread.join()
    service.close()
    pipe.send("gone")


@pytest.fixture
def old(own_address):
    mine, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_old_service, args=(own_address, theirs))
    process.start()
    assert mine.recv() == "up"
    yield mine
    if process.is_alive():
        mine.send("end")
    process.join(20)


def test_one_connection_alone_is_told_that_the_service_is_of_another_version(old, own_address):
    with pytest.raises(VersionError, match="one version"):
        join_service(Address(own_address), *joining_with(), threading.Event())


def test_newer_engines_meet_beside_the_older_ones_and_come_together_when_those_have_gone(old, own_address, monkeypatch):
    monkeypatch.setattr(home, "LOOK_SECONDS", 0.1)
    one, other, tokens = ModelEngine(own_address), Peer(own_address), prompt(16)
    assert any(name.startswith("market_beside{") for name in counters.snapshot())
    other.publish(tokens, [0, 1, 2, 3])
    assert matched(one, tokens).blocks == 4
    with pytest.raises(VersionError):
        ask_status(Address(own_address))
    assert len(ask_status(Address(own_address + BESIDE)).members) == 2
    old.send("end")
    assert old.recv() == "gone"
    until(lambda: Address(own_address).service_lives(), seconds=30)
    until(lambda: len(ask_status(Address(own_address)).members) == 2, seconds=30)
    until(lambda: not Path(own_address + BESIDE).exists(), seconds=30)
    until(lambda: one.take(tokens, [4, 5, 6, 7]) == 4)
    other.publish(later := prompt(16, 1), [4, 5, 6, 7])
    until(lambda: one.take(later, [4, 5, 6, 7]) == 4)
    one.close()
    other.kill()


def test_who_is_at_home_does_not_look_for_it(own_address, monkeypatch):
    monkeypatch.setattr(home, "LOOK_SECONDS", 0.0)
    engine = ModelEngine(own_address)
    connection = engine.market._control._client._connection
    assert not engine.market._control._client.home.free(1e9)
    engine.publish(tokens := prompt(16, 2), [0, 1, 2, 3])
    until(lambda: engine.market.match(tokens).blocks == 4)
    assert engine.market._control._client._connection is connection
    engine.close()
