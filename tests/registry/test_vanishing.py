"""Files of a market that are removed under its living service: all engines find together again, within seconds."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.registry.address import Address
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
