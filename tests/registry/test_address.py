"""Where a market lives: sockets that cannot be, files that are not ours, and a service of another version."""

from __future__ import annotations

import os
import select
import socket
import threading

import pytest

import kvmarket
from kvmarket.errors import AddressError, VersionError
from kvmarket.registry import messages
from kvmarket.registry.address import Address
from kvmarket.registry.wire import Door, Wire
from tests.model_engine import FACTS, ModelEngine

FINGERPRINT = kvmarket.Fingerprint.of(**FACTS)


@pytest.fixture
def engine(market_address):
    made = ModelEngine(market_address)
    yield made
    made.close()


def test_addresses_that_cannot_be(tmp_path):
    with pytest.raises(AddressError, match="too long"):
        Address(tmp_path / ("x" * 120))
    with pytest.raises(AddressError, match="names no Unix socket"):
        Address("tcp://127.0.0.1:5555")
    (tmp_path / "file").touch()
    with pytest.raises(AddressError, match="cannot be made"):
        Address(tmp_path / "file" / "socket")


def test_a_default_directory_that_others_can_enter(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("KVMARKET_ADDRESS", raising=False)
    (tmp_path / "kvmarket").mkdir(mode=0o755)
    with pytest.raises(AddressError, match="0700"):
        Address()


def test_the_markets_files_are_private(engine):
    place = engine.market._control._client._address
    assert [oct(path.stat().st_mode & 0o777) for path in (place.socket, place.lock)] == ["0o600", "0o600"]


def test_a_socket_that_cannot_be_made(own_address):
    """A directory where the socket should be: the service cannot bind, and `connect` says where to look."""
    from kvmarket.registry.service import Service

    place = Address(own_address)
    place.socket.mkdir()
    with pytest.raises(AddressError, match="give another address"):
        Service(place)


def test_a_service_of_another_version(engine, own_address):
    """Something holds the lock and answers in another protocol."""
    place = Address(own_address)
    lock = place.take_lock()
    assert lock is not None
    door = Door(place.socket)
    wires: list[Wire] = []

    def answer() -> None:
        select.select([door], [], [])
        wires.append(door.accept(1))
        select.select([wires[0]], [], [])
        wires[0].send(b"kvmarket/999\n\x80")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(VersionError, match="kvmarket/999"):
        kvmarket.connect(engine.cache, FINGERPRINT, address=own_address)
    thread.join()
    wires[0].close()
    door.close()
    os.close(lock)


def test_a_service_that_speaks_another_way(engine, own_address):
    """An older one, whose socket is a stream."""
    place = Address(own_address)
    lock = place.take_lock()
    assert lock is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(place.socket))
        other.listen()
        with pytest.raises(VersionError, match="one version of kvmarket"):
            kvmarket.connect(engine.cache, FINGERPRINT, address=own_address)
    os.close(lock)


def test_an_engine_of_another_version(own_address, monkeypatch):
    engine = ModelEngine(own_address)
    with monkeypatch.context() as patch, pytest.raises(VersionError, match="one version of kvmarket"):
        patch.setattr(messages, "PROTOCOL", b"kvmarket/0\n")
        kvmarket.connect(engine.cache, FINGERPRINT, address=own_address)
    engine.close()


def test_an_address_where_something_else_lies(tmp_path):
    """The service would remove it to bind its socket there."""
    precious = tmp_path / "model.db"
    precious.write_text("data")
    with pytest.raises(AddressError, match="is not a market's"):
        Address(precious)
    assert precious.read_text() == "data"


def test_an_address_of_another_user(tmp_path, monkeypatch):
    place = Address(tmp_path / "s")
    (tmp_path / "s.lock").touch(mode=0o666)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(AddressError, match="another user"):
        place.service_lives()
