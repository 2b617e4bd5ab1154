"""The wait of a client's watching thread: for messages of the service, for its death, and for a wake-up."""

from __future__ import annotations

import os
import select
import threading
import time

from kvmarket.registry.client.connection import Connection


class Vigil:
    """Waits for events of one connection. Used by one thread."""

    def __init__(self, connection: Connection, wake: int, closing: threading.Event) -> None:
        """`wake`: an eventfd that wakes the thread. `closing`: set when the client leaves."""
        self._connection, self._wake, self._closing = connection, wake, closing
        self._poll = select.poll()
        for source in (connection.socket, connection.pidfd, wake):
            self._poll.register(source, select.POLLIN)

    def dies(self, seconds: float, again: float) -> bool:
        """Wait for a message, a wake-up or the service's death, at most `seconds`; return whether it has died.

        If the connection is closed, waits up to `again` seconds for the death: a killed process closes its connections
        some moments before it is dead, and a connection that broke may break again and again.
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
        """Wait for an event, at most `seconds`; return whether the service has died."""
        ready = dict(self._poll.poll(1000 * seconds))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._connection.pidfd in ready
