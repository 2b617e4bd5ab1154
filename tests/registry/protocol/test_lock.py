"""The lock by which a service says that it lives: who looks at it, and who takes it while it is removed."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from kvmarket.registry.protocol.address import Address


def test_whoever_looks_keeps_no_descriptor_and_is_no_service(tmp_path):
    place = Address(tmp_path / "s")
    place.lock.touch(mode=0o600)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with place.lock.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not place.service_lives(), "another one who looks"
        assert place.take_lock() is None
        fcntl.flock(other, fcntl.LOCK_EX)
        assert place.service_lives()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_lock_that_is_removed_while_it_is_taken(own_address, monkeypatch):
    """A lock that nobody finds keeps nobody out."""
    place, flock, times = Address(own_address), fcntl.flock, []

    def remove_first(fd: int, how: int) -> None:
        flock(fd, how)
        times.append(fd)
        if len(times) <= 2:
            place.lock.unlink()
            if len(times) == 2:
                place.lock.touch()

    monkeypatch.setattr("fcntl.flock", remove_first)
    fd = place.take_lock()
    assert len(times) == 3 and os.fstat(fd).st_ino == place.lock.stat().st_ino
    os.close(fd)


def test_a_fork_keeps_no_lock_of_who_looks(own_address, monkeypatch):
    """Whoever looks whether a service lives locks for a moment, and another thread may fork in it."""
    place, flock, children = Address(own_address), fcntl.flock, []
    place.lock.touch()

    def fork_then(fd: int, how: int) -> None:
        flock(fd, how)
        if not children and not (child := os.fork()):
            time.sleep(60)
            os._exit(0)
        elif not children:
            children.append(child)

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", fork_then)
        assert not place.service_lives()
    lock = place.take_lock()
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    assert lock is not None
    os.close(lock)
