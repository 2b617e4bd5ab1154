"""The connections to the service, each with its member and the state of its stream in both directions."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterator

from kvmarket import counters
from kvmarket.registry.protocol.messages import Reply, pack_message
from kvmarket.registry.protocol.numbering import Heard
from kvmarket.registry.protocol.packets import PacketSocket
from kvmarket.registry.service.listener import Listener
from kvmarket.registry.space.feed import Feed

REST_SECONDS = 0.2  # without accepting connections, after descriptors ran out

_log = logging.getLogger("kvmarket.service")


class Session:
    """A connection. Its `member` is empty until an engine has joined over it. Not thread-safe."""

    def __init__(self, sock: PacketSocket) -> None:
        """Take ownership of an accepted connection."""
        self.socket = sock
        self.events = sock.events  # the events that it is polled for
        self.member = ""
        self.heard = Heard(time.monotonic())
        self.feed: Feed | None = None

    def send(self, reply: Reply) -> bool:
        """Send without waiting; False if the connection is gone or does not keep up."""
        return self.socket.send(pack_message(reply))

    def ask(self, now: float) -> None:
        """Ask the engine for a snapshot, if a message was missed and the request is due."""
        if self.member and (again := self.heard.wanted(now)) is not None:
            self.send(again)


class Sessions:
    """All connections and the listening socket, registered in the service's epoll."""

    def __init__(self, poll: select.epoll, listener: Listener) -> None:
        """Start without connections. Takes ownership of `listener`, the listening socket."""
        self._poll, self._listener = poll, listener
        self._by_descriptor: dict[int, Session] = {}
        self._open_at = 0.0  # when to accept connections again; 0: now
        poll.register(listener, select.EPOLLIN)

    def __iter__(self) -> Iterator[Session]:
        """Iterate over a copy of the connections."""
        return iter(list(self._by_descriptor.values()))

    def get(self, descriptor: int) -> Session | None:
        """The connection with this descriptor; None if there is none."""
        return self._by_descriptor.get(descriptor)

    def let_in(self) -> None:
        """Accept all waiting connections. If descriptors run out, count that and accept none for `REST_SECONDS`."""
        try:
            while (sock := self._listener.accept()) is not None:
                self._by_descriptor[sock.fileno()] = Session(sock)
                self._poll.register(sock, sock.events)
        except OSError as error:
            counters.add("not_let_in", reason="no descriptor is left; raise the limit of open files", detail=error)
            self._poll.unregister(self._listener)
            self._open_at = time.monotonic() + REST_SECONDS

    def look_after(self, now: float) -> None:
        """Periodic work: accept connections again, ask for missed messages, repeat the last number of each feed."""
        if self._open_at and now > self._open_at:
            self._open_at = 0.0
            self._poll.register(self._listener, select.EPOLLIN)
        for session in self:
            session.ask(now)
            if session.feed is not None:
                session.feed.mark(now)

    def expect(self) -> None:
        """Poll connections for writability exactly while they have unsent packets."""
        for session in self._by_descriptor.values():
            events = session.socket.events
            if events != session.events:
                session.events = events
                self._poll.modify(session.socket, events)

    def hang_up(self, session: Session) -> None:
        """Close a connection. Does nothing if it is closed already."""
        if self._by_descriptor.pop(session.socket.fileno(), None) is not None:
            self._poll.unregister(session.socket)
            session.socket.close()

    def close(self) -> None:
        """Close all connections and the listening socket."""
        for session in self._by_descriptor.values():
            session.socket.close()
        self._listener.close()
