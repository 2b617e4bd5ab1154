"""Start the service of a market from an engine that found none."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvmarket.child import command, environment
from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address
from kvmarket.support.advice import explained

WAIT_SECONDS = 0.01  # between two checks whether another process has started it
AWAY_SECONDS = 1.0  # after so long without a check the waiting time counts anew
PATIENCE = 10.0  # seconds for which another starting process is waited for: it may be stopped, or hang
_starting: dict[tuple[int, str], object] = {}  # (process, log) -> the thread's token that may start the service
_waits: dict[str, tuple[float, float]] = {}  # log -> when this process first and last waited for another one


def start_service(address: Address) -> None:
    """Start the service of `address` as a process of its own, and wait until it listens.

    If another process or thread is starting it, returns after `WAIT_SECONDS`: call again. After `PATIENCE` seconds of
    that it starts the service anyway; the service's own lock makes sure that only one runs. Raises AddressError if the
    service does not start.
    """
    address.prepare()
    try:
        with _turn(address, patient=_waited(address) < PATIENCE) as log:
            if log is None:
                time.sleep(WAIT_SECONDS)
                return
            _waits.pop(str(address.log), None)
            if address.service_lives():
                return
            done = subprocess.run(
                command("kvmarket.registry.service.daemon", str(address)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                check=False,
            )
    except OSError as error:
        raise AddressError(f"the service at {address} cannot be started {explained(error)}") from error
    if done.returncode:
        raise AddressError(f"the service at {address} did not start (exit {done.returncode}); see {address.log}")


def _waited(address: Address) -> float:
    """Seconds for which this process has waited for another one to start the service, without a pause."""
    now, log = time.monotonic(), str(address.log)
    since, last = _waits.get(log, (now, now))
    since = now if now > last + AWAY_SECONDS else since
    _waits[log] = (since, now)
    return now - since


@contextmanager
def _turn(address: Address, patient: bool = True) -> Iterator[int | None]:
    """A context that yields a descriptor of the log if we may start the service; None if another one is starting it.

    `patient`: whether to leave it to another one. A record lock on the log excludes other processes; unlike a lock of
    flock(2), a fork does not inherit it. It does not exclude threads, for which `_starting` is there, and it ends when
    this process closes any descriptor of the log.
    """
    turn = (os.getpid(), str(address.log))  # with the process: a fork must not wait for a thread of its parent
    me = object()
    mine = _starting.setdefault(turn, me) is me
    if not mine and patient:
        yield None
        return
    try:
        log = os.open(address.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield log if _locked(log) or not patient else None
        finally:
            os.close(log)
    finally:
        if mine:
            del _starting[turn]


def _locked(fd: int) -> bool:
    """Take the record lock of a file; False if another process has it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
        return False
    return True
