"""Asking a service for its state."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmarket.cli import app
from kvmarket.cli.doctor import machine
from kvmarket.cli.top import ask_status
from kvmarket.errors import AddressError, VersionError
from kvmarket.registry.client.launch import start_service
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.listener import Listener


def test_a_service_that_is_about_to_listen_is_waited_for(own_address: str, monkeypatch: pytest.MonkeyPatch):
    place = Address(own_address)
    lock = place.take_lock()
    assert lock is not None
    monkeypatch.setitem(ask_status.__globals__, "ANSWER_SECONDS", 0.2)
    with pytest.raises(AddressError, match="lets nobody in"):
        ask_status(place)
    os.close(lock)
    monkeypatch.undo()
    start_service(place)
    service = ask_status(place).service.pid
    aside = place.socket.with_name("aside")
    os.kill(service, signal.SIGSTOP)  # or it would make another one
    place.socket.rename(aside)  # it has its lock, and no socket yet
    later = threading.Timer(0.3, lambda: (aside.rename(place.socket), os.kill(service, signal.SIGCONT)))
    later.start()
    begun = time.monotonic()
    assert ask_status(place).members == () and time.monotonic() - begun > 0.25
    later.join()
    os.kill(service, signal.SIGTERM)


@pytest.fixture
def other_version(own_address: str) -> Iterator[Address]:
    """Where a service lives that answers in another version of the protocol."""
    place = Address(own_address)
    listener, stop = Listener(place), threading.Event()

    def answer() -> None:
        wires = []
        while not stop.is_set():
            if select.select([listener], [], [], 0.01)[0] and (sock := listener.accept()) is not None:
                wires.append(sock)
                sock.send(b"kvmarket/999\n\x80")
        for sock in wires:
            sock.close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield place
    stop.set()
    thread.join()
    listener.close()


@pytest.fixture
def another_way(own_address: str) -> Iterator[Address]:
    """Where a service lives that does not even speak in packets."""
    place = Address(own_address)
    lock = place.take_lock()
    assert lock is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(place))
        door.listen()
        yield place
    os.close(lock)


@pytest.mark.parametrize("kind", ["other_version", "another_way"])
def test_a_service_of_another_version(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    place = request.getfixturevalue(kind)
    with pytest.raises(VersionError, match="one version of kvmarket"):
        ask_status(place)
    monkeypatch.setenv("KVMARKET_ADDRESS", str(place))
    finding = machine._market()
    assert (finding.level, finding.found) == ("bad", "VersionError")
    assert "one version of kvmarket" in finding.advice and "\n" not in finding.advice


def test_what_the_doctor_says_of_a_market(market_address: str, own_address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVMARKET_ADDRESS", market_address)
    finding = machine._market()
    assert finding.level == "ok" and f"served by process {os.getpid()}, engines: " in finding.found
    monkeypatch.setenv("KVMARKET_ADDRESS", own_address)
    assert "no service yet" in machine._market().found
    monkeypatch.setenv("KVMARKET_ADDRESS", "tcp://here")
    assert machine._market().level == "bad"


@pytest.mark.parametrize("said", ["[/red] is no path; give another", "x" * 300])
def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str):
    def fail() -> None:
        raise AddressError(said)

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit, match="2"):
        app.run()
    assert capsys.readouterr().err == f"AddressError: {said}\n"


def test_no_service(own_address: str):
    with pytest.raises(AddressError, match="no service"):
        ask_status(Address(Path(own_address)))
