"""A pidfd of another process, checked so that it is not one of a later process with the same number."""

from __future__ import annotations

import os

from kvmarket.errors import NamespaceError, RefusedError
from kvmarket.processes.shared_file import Process, pid_namespace
from kvmarket.support.transient import MORE, is_transient


def watch(process: Process, who: str = "process") -> int:
    """Open a descriptor that becomes readable when `process` dies; the caller closes it. Costs 50 us.

    `who` names the process in messages. Raises RefusedError if the process has died or cannot be watched,
    NamespaceError if it is of another PID namespace.
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
    except OSError as error:  # /proc cannot be read
        os.close(pidfd)
        raise RefusedError(f"{name} cannot be looked at: {error.strerror}; try again") from error
    os.close(pidfd)
    raise RefusedError(f"{name} is not the one that was named; it has died, try again")
