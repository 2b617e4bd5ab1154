"""The pidfds by which the service notices the death of a member: one per process, readable when it dies.

`Service._turn` then drops the member's offers.
"""

from __future__ import annotations

import os
import select
from collections.abc import Collection

from kvmarket.errors import RefusedError
from kvmarket.processes.shared_file import Process
from kvmarket.processes.watching import watch


class DeathWatch:
    """The pidfds of all members' processes, registered in the service's epoll."""

    def __init__(self, poll: select.epoll) -> None:
        """Watch no process yet."""
        self._poll = poll
        self._watched: dict[int, str] = {}  # descriptor -> member

    def watch(self, member: str, pidfds: Collection[int]) -> None:
        """Watch the processes of a member. Takes ownership of the pidfds."""
        for pidfd in pidfds:
            self._watched[pidfd] = member
            self._poll.register(pidfd, select.EPOLLIN)

    def of(self, descriptor: int) -> str | None:
        """The member whose process this pidfd is of; None if it is not one of these pidfds."""
        return self._watched.get(descriptor)

    def forget(self, member: str) -> None:
        """Stop watching a member, and close its pidfds."""
        for pidfd in [fd for fd, name in self._watched.items() if name == member]:
            self._poll.unregister(pidfd)
            os.close(pidfd)
            del self._watched[pidfd]

    def close(self) -> None:
        """Close all pidfds."""
        for pidfd in self._watched:
            os.close(pidfd)


def open_pidfds(processes: Collection[Process]) -> list[int]:
    """Open a pidfd for each of these processes that is in our PID namespace; the caller closes them.

    A process of another namespace has none: its engine counts as alive while its connection is open. Raises
    RefusedError if a process has died or cannot be watched; then no pidfd is left open.
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
