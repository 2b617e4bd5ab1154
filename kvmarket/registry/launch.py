"""Starting the service of a market from an engine that found none."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvmarket.advice import explained
from kvmarket.child import command, environment
from kvmarket.errors import AddressError
from kvmarket.registry.address import Address

_starting: dict[tuple[int, str], object] = {}  # process and log -> whose turn it is among the threads


def start_service(address: Address) -> None:
    """Start the service of `address` as a process of its own, and wait until it listens.

    Where somebody else is just starting it, returns after a moment. Raises AddressError if it does not start.
    """
    address.prepare()
    try:
        with _turn(address) as log:
            if log is None:
                time.sleep(0.05)
                return
            if address.service_lives():
                return
            done = subprocess.run(
                command("kvmarket.registry.daemon", str(address)),
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


@contextmanager
def _turn(address: Address) -> Iterator[int | None]:
    """A descriptor of the log while nobody else may start the service; None where somebody else is starting it.

    A record lock keeps other processes out: a fork does not inherit it, as it does a lock of flock(2). It knows no
    threads, and it ends when this process closes any descriptor of the log.
    """
    turn = (os.getpid(), str(address.log))  # a fork has no use for the turn of a thread that it has not
    me = object()
    if _starting.setdefault(turn, me) is not me:
        yield None
        return
    try:
        log = os.open(address.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield log if _locked(log) else None
        finally:
            os.close(log)
    finally:
        del _starting[turn]


def _locked(fd: int) -> bool:
    """Take the record lock of a file; False where another process has it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # fcntl(2) says either
        return False
    return True
