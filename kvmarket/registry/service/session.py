"""The connections to the service: who each is, what it has said, and what it is told."""

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

REST_SECONDS = 0.2  # in which nobody is let in, where there are no descriptors left

_log = logging.getLogger("kvmarket.service")


class Session:
    """A connection: nobody's until a member has joined over it. Not thread-safe."""

    def __init__(self, sock: PacketSocket) -> None:
        """Take over a connection that was let in."""
        self.socket = sock
        self.events = sock.events  # what it is polled for
        self.member = ""
        self.heard = Heard(time.monotonic())
        self.feed: Feed | None = None

    def send(self, reply: Reply) -> bool:
        """Send without waiting; False where the connection is gone or does not keep up."""
        return self.socket.send(pack_message(reply))

    def ask(self, now: float) -> None:
        """Ask for what was missed, where that is due."""
        if self.member and (again := self.heard.wanted(now)) is not None:
            self.send(again)


class Sessions:
    """All connections, and the door through which they come, in the poll of the service."""

    def __init__(self, poll: select.epoll, door: Listener) -> None:
        """Nobody has come yet."""
        self._poll, self._door = poll, door
        self._by_descriptor: dict[int, Session] = {}
        self._open_at = 0.0  # when the door is opened again; 0: it is open
        poll.register(door, select.EPOLLIN)

    def __iter__(self) -> Iterator[Session]:
        """All of them."""
        return iter(list(self._by_descriptor.values()))

    def get(self, descriptor: int) -> Session | None:
        """The connection of this descriptor."""
        return self._by_descriptor.get(descriptor)

    def let_in(self) -> None:
        """Whoever knocks; where there are no descriptors left, nobody for a while: they go on knocking."""
        try:
            while (sock := self._door.accept()) is not None:
                self._by_descriptor[sock.fileno()] = Session(sock)
                self._poll.register(sock, sock.events)
        except OSError as error:
            counters.add("not_let_in", reason="no descriptor is left; raise the limit of open files", detail=error)
            self._poll.unregister(self._door)
            self._open_at = time.monotonic() + REST_SECONDS

    def look_after(self, now: float) -> None:
        """What is to be done every now and then: open the door again, ask for what was missed, tell the last number."""
        if self._open_at and now > self._open_at:
            self._open_at = 0.0
            self._poll.register(self._door, select.EPOLLIN)
        for session in self:
            session.ask(now)
            if session.feed is not None:
                session.feed.mark(now)

    def expect(self) -> None:
        """Have the poll tell when a connection takes more, where something waits for it, and only then."""
        for session in self._by_descriptor.values():
            events = session.socket.events
            if events != session.events:
                session.events = events
                self._poll.modify(session.socket, events)

    def hang_up(self, session: Session) -> None:
        """Close a connection."""
        if self._by_descriptor.pop(session.socket.fileno(), None) is not None:
            self._poll.unregister(session.socket)
            session.socket.close()

    def close(self) -> None:
        """Close all of them, and the door."""
        for session in self._by_descriptor.values():
            session.socket.close()
        self._door.close()
