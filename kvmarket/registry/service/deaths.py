"""Whose death the service watches for: a descriptor for each process of a member, readable the moment it dies."""

from __future__ import annotations

import os
import select
from collections.abc import Collection

from kvmarket.errors import RefusedError
from kvmarket.processes.shared_file import Process
from kvmarket.processes.watching import watch


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
    """A descriptor for each process of our PID namespace, which becomes readable when it dies.

    An engine of another namespace is as alive as its connection. Raises RefusedError if one has died or cannot be
    watched; none is open then.
    """
    pidfds: list[int] = []
    try:
        for process in processes:
            if process.near:
                pidfds.append(watch(process))
    except RefusedError:
        for pidfd in pidfds:
            os.close(pidfd)
        raise
    return pidfds
