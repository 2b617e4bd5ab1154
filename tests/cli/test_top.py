"""Asking a service for its state."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.errors import AddressError
from kvmarket.registry.address import Address
from kvmarket.registry.launch import start_service


def test_a_service_that_is_about_to_listen_is_waited_for(own_address: str, monkeypatch: pytest.MonkeyPatch):
    place, aside = Address(Path(own_address)), Path(own_address).with_suffix(".aside")
    start_service(place)
    place.socket.rename(aside)  # it has its lock, and no socket yet
    later = threading.Timer(0.3, aside.rename, (place.socket,))
    later.start()
    begun = time.monotonic()
    assert ask_status(place).members == () and time.monotonic() - begun > 0.25
    later.join()
    place.socket.rename(aside)
    monkeypatch.setitem(ask_status.__globals__, "ANSWER_SECONDS", 0.2)
    with pytest.raises(AddressError, match="lets nobody in"):
        ask_status(place)
    aside.rename(place.socket)


def test_no_service(own_address: str):
    with pytest.raises(AddressError, match="no service"):
        ask_status(Address(Path(own_address)))
