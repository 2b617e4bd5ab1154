"""Noticing that another process dies, whatever its number means elsewhere."""

from __future__ import annotations

import os

from kvmarket.errors import NamespaceError, RefusedError
from kvmarket.processes.shared_file import Process, pid_namespace
from kvmarket.support.transient import MORE, is_transient


def watch(process: Process, who: str = "process") -> int:
    """A descriptor that becomes readable when `process`, called `who` in messages, dies. Costs 50 us.

    Raises RefusedError if it has died or cannot be watched, NamespaceError if its number means nothing here.
    """
    name = f"{who} {process.pid}" if who == "process" else f"{who} (process {process.pid})"
    if process.namespace != pid_namespace():
        raise NamespaceError(
            f"{name} lives in another PID namespace than the one that watches it, where its number means nothing"
        )
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        advice = MORE if is_transient(error) else "is it still alive?"
        raise RefusedError(f"{name} cannot be watched: {error.strerror}; {advice}") from error
    try:
        if process.alive():
            return pidfd
    except OSError as error:  # out of descriptors, say
        os.close(pidfd)
        raise RefusedError(f"{name} cannot be looked at: {error.strerror}; try again") from error
    os.close(pidfd)
    raise RefusedError(f"{name} is not the one that was named; it has died, try again")
