"""Files of a market that are removed under its living service: all engines find together again, within seconds."""

from __future__ import annotations

import os
import shutil
import signal
import threading

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import Service
from tests.model_engine import ModelEngine, matched, prompt, until


def remove(place: Address, what: str) -> None:
    if what == "directory":
        shutil.rmtree(place.socket.parent)
    for path in {"lock": [place.lock], "socket": [place.socket], "both": [place.lock, place.socket]}.get(what, []):
        path.unlink()


@pytest.mark.parametrize("what", ["lock", "socket", "both", "directory"])
def test_newcomers_find_those_who_are_in(own_address, what):
    """As cleaners of /tmp remove them, and at logout; whoever had joined goes on."""
    tokens = prompt(16)
    engines = [ModelEngine(own_address), ModelEngine(own_address)]
    place = Address(own_address)
    remove(place, what)
    engines[0].publish(tokens, [0, 1, 2, 3])
    assert matched(engines[1], tokens).blocks == 4
    engines.append(ModelEngine(own_address))
    assert until(lambda: len(ask_status(place).members) == 3, seconds=10) < 5
    assert matched(engines[2], tokens).blocks == 4
    for engine in engines:
        engine.close()


def test_a_service_that_comes_too_late_gives_way(own_address):
    """It is stopped while another one is founded."""
    tokens = prompt(16)
    first = ModelEngine(own_address)
    place = Address(own_address)
    first.publish(tokens, [0, 1, 2, 3])
    service = ask_status(place).service
    os.kill(service.pid, signal.SIGSTOP)
    remove(place, "lock")
    second = ModelEngine(own_address)
    assert ask_status(place).service != service
    os.kill(service.pid, signal.SIGCONT)
    until(lambda: not service.alive(), seconds=5)
    assert until(lambda: second.market.match(tokens).blocks == 4, seconds=10) < 5
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("idle_exit", "member", "stays"), [(None, False, True), (60.0, True, True), (60.0, False, False)]
)
def test_a_service_stays_where_it_is_needed(own_address, idle_exit, member, stays):
    """By an engine, or by whoever started it by hand; else the directory is not made again that somebody removed."""
    place = Address(own_address)
    service = Service(place, idle_exit)
    thread = threading.Thread(target=lambda: (service.run(), service.close()))
    thread.start()
    engine = ModelEngine(own_address) if member else None
    remove(place, "directory")
    if stays:
        until(lambda: place.service_lives() and place.socket.exists(), seconds=5)
        assert ask_status(place).service.pid == os.getpid() and thread.is_alive()
        assert len(ask_status(place).members) == member
    else:
        thread.join(5)
        assert not thread.is_alive() and not place.socket.parent.exists()
    if engine is not None:
        engine.close()
    service.stop()
    thread.join()
    assert not place.socket.parent.exists()
