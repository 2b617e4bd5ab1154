"""Starting the service of a market from an engine that found none."""

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

WAIT_SECONDS = 0.01  # between two looks whether somebody else has started it
AWAY_SECONDS = 1.0  # without a look, after which the waiting begins anew
PATIENCE = 10.0  # seconds for which somebody else is waited for: he may be stopped, or hang
_starting: dict[tuple[int, str], object] = {}  # process and log -> whose turn it is among the threads
_waits: dict[str, tuple[float, float]] = {}  # log -> when this process first and last found somebody starting it


def start_service(address: Address) -> None:
    """Start the service of `address` as a process of its own, and wait until it listens.

    Where somebody else is just starting it, returns after a moment, but is not put off for longer than `PATIENCE`: that
    there is one service is up to its own lock. Raises AddressError if it does not start.
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
    """Seconds for which this process has waited for somebody else to start the service, without having been away."""
    now, log = time.monotonic(), str(address.log)
    since, last = _waits.get(log, (now, now))
    since = now if now > last + AWAY_SECONDS else since
    _waits[log] = (since, now)
    return now - since


@contextmanager
def _turn(address: Address, patient: bool = True) -> Iterator[int | None]:
    """A descriptor of the log while nobody else may start the service; None where somebody else does and we wait.

    A record lock keeps other processes out: a fork does not inherit it, as it does a lock of flock(2). It knows no
    threads, and it ends when this process closes any descriptor of the log.
    """
    turn = (os.getpid(), str(address.log))  # a fork has no use for the turn of a thread that it has not
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
    """Take the record lock of a file; False where another process has it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # fcntl(2) says either
        return False
    return True
