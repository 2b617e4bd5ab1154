"""The service: one process per user and market that holds the book. Everything it knows is soft state.

One thread, one poll loop: requests on a private Unix socket, and a pidfd per process of every member, readable the
moment it dies. A member that closes its connection has left. It answers no match: every engine does that itself, from
its replica (see replica.py).
"""

from __future__ import annotations

import logging
import os
import select
import time
import uuid
from collections import Counter

from kvmarket.errors import (
    LayoutError,
    MessageError,
    NamespaceError,
    NotJoinedError,
    RefusedError,
    TokenError,
    VersionError,
)
from kvmarket.leftovers import sweep
from kvmarket.registry.address import Address
from kvmarket.registry.book import Book
from kvmarket.registry.listener import Listener
from kvmarket.registry.messages import (
    AskStatus,
    Join,
    Joined,
    OfferBlocks,
    PoolGone,
    PoolJoined,
    Promise,
    Refused,
    Reply,
    Request,
    Retire,
    Settle,
    Status,
    Sync,
    pack_message,
    unpack_request,
)
from kvmarket.registry.stream import Stream
from kvmarket.registry.watching import watch
from kvmarket.registry.wire import Wire
from kvmarket.shared_file import Process

POLL_SECONDS = 0.2
SWEEP_SECONDS, SWEEP_SOON = 60.0, 1.0  # for what dead processes have left; after a connection has ended
WAITING_MESSAGES = 1024  # to an engine that does not read, which then misses some
TURN_MESSAGES = 64  # of one engine, before others have their turn
REST_SECONDS = 0.2  # in which nobody is let in, where there are no descriptors left
MOST_LOGGED = 100  # refusals of one kind

_log = logging.getLogger("kvmarket.service")


class Service:
    """Serves one market until told to stop, or until nobody has been a member for `idle_exit` seconds, if given."""

    def __init__(self, address: Address, idle_exit: float | None = None) -> None:
        """Take the market's lock and bind its socket (0600, and only processes of this user are let in).

        Raises AddressError if another service has it, or it cannot be made.
        """
        self.address = address
        self._idle_exit = idle_exit
        self._door = Listener(address)
        self._stopped = False
        self._book = Book()
        self._wires: dict[int, Wire] = {}  # by descriptor
        self._routes: dict[Wire, str] = {}  # connection -> member
        self._streams: dict[str, Stream] = {}  # space -> what its members hear
        self._watched: dict[int, str] = {}  # pidfd -> member
        self._counters: Counter[str] = Counter()
        self._sweep_at = 0.0
        self._open_at = 0.0  # when the door is opened again; 0: it is open
        self._me = Process.current()
        self._poll = select.epoll()
        self._poll.register(self._door, select.EPOLLIN)

    def run(self) -> None:
        """Serve. Returns when told to `stop`, or when idle for `idle_exit` seconds."""
        empty_since = time.monotonic()
        wait = POLL_SECONDS
        while not self._stopped:
            if not self._door.keep(needed=self._idle_exit is None or bool(self._book.members)):
                _log.info("%s is another service's, or gone; this one gives way", self.address)
                return
            ready = self._poll.poll(max(0.0, wait))
            if self._open_at and time.monotonic() > self._open_at:
                self._open_at = 0.0
                self._poll.register(self._door, select.EPOLLIN)
            wires = [(self._wires[fd], events) for fd, events in ready if fd in self._wires]
            for fd, _ in ready:  # before anything is opened, which may get the number of what was closed
                if fd in self._watched:
                    self._remove(self._watched[fd])
                    sweep()
            for wire, events in wires:
                if wire.fileno() >= 0:  # not hung up meanwhile
                    self._serve(wire, events)
            if any(fd == self._door.fileno() for fd, _ in ready):
                self._let_in()
            wait = POLL_SECONDS
            for stream in self._streams.values():
                if (due := stream.due()) > 0:
                    wait = min(wait, due)
                else:
                    stream.flush(self._send)
            if time.monotonic() > self._sweep_at:
                self._sweep_at = time.monotonic() + SWEEP_SECONDS
                sweep()
            if self._book.members:
                empty_since = time.monotonic()
            elif self._idle_exit is not None and time.monotonic() - empty_since > self._idle_exit:
                return

    def stop(self) -> None:
        """Have `run` return within 0.2 s. May be called from any thread or signal handler."""
        self._stopped = True

    def close(self) -> None:
        """Remove the socket and let go of the lock; leaves no file behind."""
        for pidfd in self._watched:
            os.close(pidfd)
        for wire in self._wires.values():
            wire.close()
        self._door.close()
        self._poll.close()
        sweep()

    def _let_in(self) -> None:
        """Whoever knocks."""
        try:
            while (wire := self._door.accept(WAITING_MESSAGES)) is not None:
                self._wires[wire.fileno()] = wire
                self._poll.register(wire, wire.events)
        except OSError as error:
            if not self._counters["not_let_in"]:
                _log.warning("nobody can be let in (%s); raise the limit of open files", error.strerror)
            self._counters["not_let_in"] += 1
            self._poll.unregister(self._door)  # for a while: they go on knocking
            self._open_at = time.monotonic() + REST_SECONDS

    def _serve(self, wire: Wire, events: int) -> None:
        """Send what waits for a connection, and do what it asks for.

        Where the other end has closed it, whatever it said before counts no more.
        """
        if events & select.EPOLLHUP:
            self._end(wire)
            return
        if events & select.EPOLLOUT and wire.flush():
            self._poll.modify(wire, wire.events)
        for _ in range(TURN_MESSAGES if events & select.EPOLLIN else 0):
            try:
                frame = wire.receive()
                if frame is None:
                    break
                self._handle(wire, unpack_request(frame))
            except (MessageError, RefusedError, VersionError, LayoutError, NamespaceError, TokenError) as error:
                kind = type(error).__name__
                self._counters[kind] += 1
                if self._send(wire, Refused(kind, str(error))) and self._counters[kind] <= MOST_LOGGED:
                    _log.warning("%s: %s", kind, error)
        if wire.closed:
            self._end(wire)

    def _end(self, wire: Wire) -> None:
        """A connection has ended, and with it the membership of its engine."""
        self._remove(self._routes.get(wire, ""))
        self._hang_up(wire)  # it may be nobody's
        self._sweep_at = min(self._sweep_at, time.monotonic() + SWEEP_SOON)  # a dying process closes it first

    def _hang_up(self, wire: Wire) -> None:
        """Close a connection."""
        if self._wires.pop(wire.fileno(), None) is not None:
            self._poll.unregister(wire)
            wire.close()

    def _handle(self, route: Wire, request: Request) -> None:
        member = self._routes.get(route, "")
        self._counters[type(request).__name__] += 1
        match request:
            case Join():
                self._join(route, request)
            case OfferBlocks() | Retire() | Promise() | Settle():
                self._streams[self._book.hear(member, request)].add(request, route)
            case Sync() if not member:
                raise NotJoinedError("a message of somebody who has not joined; join (again)")
            case Sync():
                self._sync(route, member)
            case AskStatus():
                self._send(route, Status(self._me, self._book.status(), self._book.blocks, dict(self._counters)))

    def _join(self, route: Wire, join: Join) -> None:
        if route in self._routes:
            raise RefusedError("this connection has joined already")
        name = uuid.uuid4().hex
        processes = {join.process, *(process for pool in join.pools for process in pool.processes)}
        pidfds: list[int] = []
        try:
            for process in processes:
                pidfds.append(watch(process))
            former = self._book.former(join)
            if former is not None:
                self._remove(former)
            self._book.join(name, join)
        except (RefusedError, LayoutError, NamespaceError):
            for pidfd in pidfds:
                os.close(pidfd)
            raise
        self._routes[route] = name
        for pidfd in pidfds:
            self._watched[pidfd] = name
            self._poll.register(pidfd, select.EPOLLIN)
        stream = self._streams.setdefault(join.space, Stream())
        for record in join.pools:
            stream.add(PoolJoined(record))
        self._send(route, Joined(self._me))
        self._sync(route, name)

    def _sync(self, route: Wire, member: str) -> None:
        """Send all that stands in the space of `member`, which hears what changes from here on."""
        joined = self._book.members[member]
        self._streams[joined.join.space].welcome(route, joined.space.changes(), self._send)

    def _remove(self, member: str) -> None:
        join = self._book.leave(member)
        if join is None:
            return
        for pidfd in [fd for fd, name in self._watched.items() if name == member]:
            self._poll.unregister(pidfd)
            os.close(pidfd)
            del self._watched[pidfd]
        stream = self._streams[join.space]
        for route in [route for route, name in self._routes.items() if name == member]:
            del self._routes[route]
            stream.forget(route)
            self._hang_up(route)  # one of its processes may live, and join again
        for record in join.pools:
            stream.add(PoolGone(record.pool))
        if not stream.routes:
            del self._streams[join.space]

    def _send(self, route: Wire, reply: Reply) -> bool:
        """Send without waiting; False, and counted, where the connection is gone or does not keep up."""
        if not route.send(pack_message(reply)):
            self._counters["reply_dropped"] += 1
            return False
        if route.blocked:
            self._poll.modify(route, route.events)
        return True
