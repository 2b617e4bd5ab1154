"""What a client's watching thread waits for: something of the service, the service's death, and whoever wakes it."""

from __future__ import annotations

import os
import select
import threading
import time

from kvmarket.registry.client.connection import Connection


class Vigil:
    """Waits over one connection. For one thread."""

    def __init__(self, connection: Connection, wake: int, closing: threading.Event) -> None:
        """`wake`: an eventfd by which the thread is woken. `closing`: set when the client leaves."""
        self._connection, self._wake, self._closing = connection, wake, closing
        self._poll = select.poll()
        for source in (connection.socket, connection.pidfd, wake):
            self._poll.register(source, select.POLLIN)

    def dies(self, seconds: float, again: float) -> bool:
        """Wait until something has come, at most so many seconds; whether the service has died.

        Where the connection has ended, for `again` seconds: who is killed closes it some moments before he is dead, and
        one that broke may break again and again.
        """
        connection, end = self._connection, time.monotonic() + again
        if connection.socket.closed:
            self._poll.unregister(connection.socket)
            while not self._closing.is_set() and (left := end - time.monotonic()) > 0:
                if self._death(left):
                    return True
            return False
        self._poll.register(connection.socket, connection.socket.events)
        return self._death(seconds)

    def _death(self, seconds: float) -> bool:
        """Wait until something has come, at most so long; whether that was the service's death."""
        ready = dict(self._poll.poll(1000 * seconds))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._connection.pidfd in ready
