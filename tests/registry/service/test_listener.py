"""A service keeps its address whatever is removed, gives way to one founded meanwhile, and takes nothing of others."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvmarket import counters
from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.packets import PacketListener, dial
from kvmarket.registry.service import listener as listener_module
from kvmarket.registry.service.listener import Listener
from tests.model_engine import until


@pytest.fixture
def place(own_address):
    return Address(own_address)


@pytest.fixture
def listener(place, monkeypatch):
    """One that looks whenever it is asked to."""
    monkeypatch.setattr(listener_module, "LOOK_SECONDS", 0.0)
    listener = Listener(place)
    yield listener
    listener.close()


def answers(listener: Listener, place: Address) -> bool:
    """Whether somebody who dials the address is let in."""
    with dial(place.socket):
        sock = listener.accept()
        if sock is not None:
            sock.close()
        return sock is not None


def remove(place: Address, what: str) -> None:
    if what == "directory":
        shutil.rmtree(place.socket.parent)
    for path in {"lock": [place.lock], "socket": [place.socket], "both": [place.lock, place.socket]}.get(what, []):
        path.unlink()


@pytest.mark.parametrize("what", ["lock", "socket", "both", "directory", "nothing"])
def test_what_is_removed_is_made_again(listener, place, what):
    gc.collect()  # what earlier tests have left must not go meanwhile
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    remove(place, what)
    assert listener.keep() and listener.keep()
    assert place.service_lives() and answers(listener, place)
    assert [path.stat().st_mode & 0o777 for path in (place.socket, place.lock)] == [0o600, 0o600]
    with pytest.raises(AddressError, match="already holds"):
        Listener(place)
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    listener.close()
    assert place.socket.parent.exists() == (what != "directory"), "whoever made it first has removed it"
    assert what == "directory" or not list(place.socket.parent.iterdir())


@pytest.mark.parametrize("what", ["lock", "both", "directory"])
def test_nobody_needs_an_address_that_is_gone(listener, place, what):
    """Whoever removed the directory of a market that has ended must not find it there again."""
    remove(place, what)
    assert not listener.keep(needed=False)
    listener.close()
    assert not place.lock.exists() and place.socket.parent.exists() == (what != "directory")


@pytest.mark.parametrize("what", ["socket", "file"])
def test_a_socket_that_is_replaced_is_made_again(listener, place, what):
    place.socket.unlink()
    if what == "file":
        place.socket.touch()
    else:
        place.socket.symlink_to("/nowhere")
    assert listener.keep() and answers(listener, place)


def test_whoever_has_come_in_stays(listener, place):
    with dial(place.socket) as outside:
        inside = listener.accept()
        remove(place, "directory")
        assert listener.keep() and listener.keep()
        outside.send(b"still there?")
        assert inside.receive() == b"still there?"
        inside.close()


@pytest.mark.parametrize("what", ["lock", "both", "directory"])
def test_the_service_with_the_address_stays(listener, place, what):
    remove(place, what)
    other = Listener(Address(place.socket))
    assert not listener.keep() and other.keep()
    listener.close()
    assert place.service_lives() and answers(other, place), "it has taken nothing along"
    other.close()


def test_who_only_looks_has_no_service(listener, place, monkeypatch):
    """He has the lock for a moment; that is no reason to give way."""
    remove(place, "lock")
    with monkeypatch.context() as patched:
        patched.setattr(Address, "take_lock", lambda self: None)
        assert listener.keep()
    assert not place.service_lives()
    assert listener.keep() and place.service_lives()


def test_a_lock_that_somebody_looks_at_is_waited_for(place, monkeypatch):
    lock = place.take_lock()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            os.close(lock)

    monkeypatch.setattr(listener_module.time, "sleep", sleep)
    Listener(place).close()
    assert len(slept) == 2


def test_an_address_that_is_taken_away_is_counted_and_comes_back(listener, place):
    """Another user's, say; those who are in stay."""
    remove(place, "both")
    place.lock.mkdir()
    name = "address_lost{nobody can join}"
    before = counters.snapshot().get(name, 0)
    assert listener.keep() and listener.keep()
    assert counters.snapshot()[name] == before + 2
    place.lock.rmdir()
    assert listener.keep() and listener.keep() and answers(listener, place)


def test_whatever_lies_in_place_of_the_socket_stays(listener, place):
    place.socket.unlink()
    place.socket.write_text("notes")
    listener.close()
    assert place.socket.read_text() == "notes" and not place.lock.exists()


def test_a_socket_that_is_removed_at_once(place, monkeypatch):
    """Before anybody could look at it."""

    class Removed(PacketListener):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            path.unlink()

    monkeypatch.setattr(listener_module, "LOOK_SECONDS", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(listener_module, "PacketListener", Removed)
        listener = Listener(place)
    assert listener.keep() and answers(listener, place)
    listener.close()


def test_what_fails_for_a_moment_keeps_no_descriptor(listener, place, monkeypatch):
    def refuse(file: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(listener_module, "identity", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            listener._open()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert listener.keep() and answers(listener, place)


def test_it_looks_now_and_then(place, monkeypatch):
    listener = Listener(place)
    assert listener.keep()
    remove(place, "both")
    assert listener.keep() and not place.lock.exists()
    until(lambda: listener.keep() and place.lock.exists(), seconds=1)
    assert listener.keep() and place.socket.exists(), "and at once for what else is missing"
    listener.close()


def test_a_log_with_something_in_it_stays(place):
    place.log.write_text("something")
    Listener(place).close()
    assert [path.name for path in place.socket.parent.iterdir()] == [place.log.name]


FORK = """
import os, signal, sys, time
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.listener import Listener
listener = Listener(Address(sys.argv[1]))
if child := os.fork():
    print(child, flush=True)
time.sleep(60)
"""


def test_a_fork_of_a_service_is_none(place):
    """Killed with a child that lives, it must not seem to live itself."""
    with subprocess.Popen([sys.executable, "-c", FORK, str(place)], stdout=subprocess.PIPE) as service:
        child = int(service.stdout.readline())
        assert place.service_lives()
        service.kill()
    try:
        until(lambda: not place.service_lives(), seconds=2)
        with pytest.raises(ConnectionRefusedError):
            dial(place.socket)
        Listener(place).close()
    finally:
        os.kill(child, signal.SIGKILL)
