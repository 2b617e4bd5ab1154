"""Whose death the service watches for: a descriptor for each process of a member, readable the moment it dies."""

from __future__ import annotations

import os
import select
from collections.abc import Collection

from kvmarket.errors import NamespaceError, RefusedError
from kvmarket.shared_file import Process, pid_namespace


class Deaths:
    """The processes of members, in the poll of the service."""

    def __init__(self, poll: select.epoll) -> None:
        """Nobody is watched yet."""
        self._poll = poll
        self._watched: dict[int, str] = {}  # descriptor -> member

    def watch(self, member: str, pidfds: Collection[int]) -> None:
        """Watch the processes of a member, by descriptors that are ours from now on."""
        for pidfd in pidfds:
            self._watched[pidfd] = member
            self._poll.register(pidfd, select.EPOLLIN)

    def of(self, descriptor: int) -> str | None:
        """The member that has lost a process where this descriptor is readable; None if it is none of ours."""
        return self._watched.get(descriptor)

    def forget(self, member: str) -> None:
        """Watch a member no longer."""
        for pidfd in [fd for fd, name in self._watched.items() if name == member]:
            self._poll.unregister(pidfd)
            os.close(pidfd)
            del self._watched[pidfd]

    def close(self) -> None:
        """Let go of all descriptors."""
        for pidfd in self._watched:
            os.close(pidfd)


def open_pidfds(processes: Collection[Process]) -> list[int]:
    """A descriptor for each process, which becomes readable when it dies.

    Raises RefusedError if one has died or cannot be watched, NamespaceError if one cannot be seen from here; none is
    open then.
    """
    pidfds: list[int] = []
    try:
        for process in processes:
            pidfds.append(_pidfd(process))
    except (RefusedError, NamespaceError):
        for pidfd in pidfds:
            os.close(pidfd)
        raise
    return pidfds


def _pidfd(process: Process) -> int:
    if process.namespace != pid_namespace():
        raise NamespaceError(
            f"process {process.pid} lives in another PID namespace than the service; run all engines of a market in "
            "one namespace (containers: --pid=host --ipc=host), or give each its own address"
        )
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        raise RefusedError(f"process {process.pid} cannot be watched: {error.strerror}; is it still alive?") from error
    try:
        if process.alive():
            return pidfd
    except OSError as error:  # out of descriptors, say
        os.close(pidfd)
        raise RefusedError(f"process {process.pid} cannot be looked at: {error.strerror}; try again") from error
    os.close(pidfd)
    raise RefusedError(f"process {process.pid} is not the one that asked; it has died")
