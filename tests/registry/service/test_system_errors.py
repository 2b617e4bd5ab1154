"""Whatever the operating system refuses on the way to a market is an error of kvmarket that says what to do."""

from __future__ import annotations

import errno
import os

import pytest

from kvmarket.errors import AddressError
from kvmarket.registry.client.launch import start_service
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.packets import dial
from kvmarket.registry.service.listener import Listener


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.ELOOP, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "lstat", "open", "flock", "fstat", "bind", "socket", "epoll_create", "run"])
def test_what_the_system_refuses_is_said_with_what_to_do(own_address, monkeypatch, call, number):
    """Wherever it happens on the way to a market."""
    place = Address(own_address)
    listener = Listener(place)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    targets = {
        "mkdir": ("pathlib.Path.mkdir", [place.prepare, lambda: start_service(place)]),
        "lstat": (
            "pathlib.Path.lstat",
            [lambda: Address(own_address), lambda: place.is_locked_by(0), place.service_lives],
        ),
        "open": ("os.open", [place.take_lock, place.service_lives, lambda: start_service(place)]),
        "flock": ("fcntl.flock", [place.take_lock, place.service_lives]),
        "fstat": ("os.fstat", [lambda: place.is_locked_by(listener._lock)]),
        "bind": ("kvmarket.registry.service.listener.PacketListener", [lambda: Listener(place)]),
        "socket": ("socket.socket", [lambda: dial(place.socket)]),
        "epoll_create": ("select.epoll", [lambda: Listener(place)]),
        "run": ("subprocess.run", [lambda: start_service(place)]),
    }
    name, operations = targets[call]
    if call in ("bind", "run"):
        listener.close()
    with monkeypatch.context() as patched:
        patched.setattr(name, refuse)
        for operation in operations:
            with pytest.raises(AddressError, match=r"; (give|raise|make|remove)") as said:
                operation()
            assert os.strerror(number) in str(said.value)
            assert ("ulimit -n" in str(said.value)) == (number == errno.EMFILE)
    listener.close()
    assert not place.lock.exists() and not place.socket.exists()
