"""The service: one process per user and market that knows all members and offers. All its state is soft state.

One thread, one poll loop: requests on a private Unix socket, and a pidfd per process of every member, readable the
moment it dies. A member that closes its connection has left. The service answers no match: every engine matches in its
own replica (see replica.py). Long work is done in small parts, so that every connection is served in between.
"""

from __future__ import annotations

import logging
import os
import select
import time
import uuid
from collections import Counter

from kvmarket import counters
from kvmarket.errors import (
    LayoutError,
    MessageError,
    NamespaceError,
    RefusedError,
    TokenError,
    VersionError,
)
from kvmarket.processes.leftovers import sweep
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.descriptors import close_all
from kvmarket.registry.protocol.lender_sockets import remove_dead
from kvmarket.registry.protocol.messages import (
    Again,
    AskDescriptors,
    Changes,
    Descriptors,
    Join,
    Joined,
    Refused,
    Reply,
    Request,
    pack_message,
    unpack_request,
)
from kvmarket.registry.protocol.status import AskOtherSpaces, AskSpace, AskSpaces, AskStatus, Report, Status
from kvmarket.registry.service.death_watch import DeathWatch, open_pidfds
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.listener import Listener
from kvmarket.registry.service.relay import Relay
from kvmarket.registry.service.session import Session, Sessions
from kvmarket.support.supervised import survived
from kvmarket.support.transient import MORE

POLL_SECONDS = 0.2
LOOK_SECONDS = 0.1  # between two calls of `Sessions.look_after`
SWEEP_SECONDS, SWEEP_SOON = 60.0, 1.0  # between clean-ups after dead processes; after a connection has ended
TURN_SECONDS = 0.004  # for the messages of one engine at a time; their changes go out to others in one message
SPARE_SECONDS = 0.002  # at a time, for snapshots, and for freeing memory
MOST_LOGGED = 100  # refusals of one kind that are logged

_log = logging.getLogger("kvmarket.service")


class Service:
    """Serves one market until `stop`, or until there has been no member for `idle_exit` seconds, if given."""

    def __init__(self, address: Address, idle_exit: float | None = None) -> None:
        """Take the market's lock and bind its socket (0600; only processes of this user are accepted).

        Raises AddressError if another service has the address, or the files cannot be made.
        """
        self.address = address
        self._idle_exit = idle_exit
        self._listener = Listener(address)
        self._stopped = False
        self._exchange = Exchange()
        self._relay = Relay(self._exchange)
        self._counters: Counter[str] = Counter()
        self._wait = 0.0  # seconds to wait for events
        self._look_at = self._sweep_at = self._empty_since = 0.0
        self._me = Process.current()
        self._poll = select.epoll()
        self._deaths = DeathWatch(self._poll)
        self._sessions = Sessions(self._poll, self._listener)

    def run(self) -> None:
        """Serve until `stop`, until idle for `idle_exit` seconds, or until another service has the address.

        Survives every exception of a turn, which is counted.
        """
        self._empty_since = time.monotonic()
        while not self._stopped:
            with survived("the service") as turn:
                self._turn()
            if turn.failed:
                time.sleep(SPARE_SECONDS)

    def _turn(self) -> None:
        """Wait for events, handle them, and send the changes to the members."""
        members = self._exchange.members
        if not self._listener.keep(needed=self._idle_exit is None or bool(members.by_name)):
            _log.info("%s is another service's, or gone; this one gives way", self.address)
            self._stopped = True
            return
        ready = self._poll.poll(self._wait)
        self._wait = 0.0  # if this turn raises, the next one does not wait
        sessions = [(self._sessions.get(fd), events) for fd, events in ready]
        for fd, _ in ready:  # first: a descriptor that is opened later may get the number of a closed one
            if (member := self._deaths.of(fd)) is not None:
                self._remove(member)
                self._sweep()
        for session, events in sessions:
            if session is not None and session.socket.fileno() >= 0:  # not closed meanwhile
                self._serve(session, events)
        if any(fd == self._listener.fileno() for fd, _ in ready):
            self._sessions.let_in()
        more = self._exchange.tell(SPARE_SECONDS)
        more = members.collect(SPARE_SECONDS) or more
        self._sessions.expect()
        now = time.monotonic()
        if now > self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._sessions.look_after(now)
        if now > self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._sweep()
        self._empty_since = now if members.by_name else self._empty_since
        idle = self._idle_exit is not None and now - self._empty_since > self._idle_exit
        self._stopped = self._stopped or idle
        self._wait = 0.0 if more else min(POLL_SECONDS, max(0.0, self._exchange.due()))

    def stop(self) -> None:
        """Make `run` return within 0.2 s. May be called from any thread or signal handler."""
        self._stopped = True

    def close(self) -> None:
        """Close all connections, remove the socket and release the lock; leaves no file behind."""
        self._deaths.close()
        self._sessions.close()
        self._poll.close()
        self._sweep()

    def _sweep(self) -> None:
        """Remove what dead processes left: files in /dev/shm, and sockets of lenders."""
        sweep()
        remove_dead(self.address)

    def _serve(self, session: Session, events: int) -> None:
        """Send unsent packets of a connection, and handle its requests, for up to `TURN_SECONDS`.

        If the other end has closed the connection, its remaining messages are ignored.
        """
        sock = session.socket
        if events & select.EPOLLHUP:
            self._end(session)
            return
        if events & select.EPOLLOUT:
            sock.flush()
        with survived("a message of an engine") as heard:
            end = time.monotonic() + TURN_SECONDS
            while events & select.EPOLLIN and time.monotonic() < end and self._hear(session):
                pass
        if sock.closed or heard.failed:  # the engine joins again and sends all its offers
            self._end(session)

    def _hear(self, session: Session) -> bool:
        """Handle the next message of a connection; False if none has come."""
        try:
            frame = session.socket.receive()
            if frame is None:
                return False
            self._handle(session, unpack_request(frame))
        except (MessageError, RefusedError, VersionError, LayoutError, NamespaceError, TokenError) as error:
            self._refuse(session, error)
        return True

    def _refuse(self, session: Session, error: Exception) -> None:
        kind = type(error).__name__
        self._counters[kind] += 1
        if self._send(session, Refused(kind, str(error))) and self._counters[kind] <= MOST_LOGGED:
            _log.warning("%s: %s", kind, error)

    def _end(self, session: Session) -> None:
        """End a connection and the membership of its engine."""
        self._remove(session.member)
        self._sessions.hang_up(session)  # also if it had no member
        self._sweep_at = min(self._sweep_at, time.monotonic() + SWEEP_SOON)  # its process may be about to die

    def _handle(self, session: Session, request: Request) -> None:
        match request:
            case Join():
                self._join(session, request)
            case Changes() | Again() | Report():
                self._exchange.hear(session, request)
            case AskDescriptors():
                self._relay.ask(session, request)
            case Descriptors():
                self._relayed(session, request)
            case AskStatus():
                members = self._exchange.members
                spaces = members.told_spaces(request.facts)
                counted = {**self._counters, **self._exchange.heard, **counters.snapshot()}
                self._send(session, Status(self._me, members.status(), members.blocks, counted, spaces))
            case AskOtherSpaces():
                self._send(session, self._exchange.members.other_spaces(request.space))
            case AskSpaces():
                self._send(session, self._exchange.members.all_spaces())
            case AskSpace():
                self._send(session, self._exchange.members.described(request.space))

    def _join(self, session: Session, join: Join) -> None:
        if session.member:
            raise RefusedError("this connection has joined already")
        self._counters["Join"] += 1
        name = uuid.uuid4().hex
        pidfds = open_pidfds({join.process, *(process for pool in join.pools for process in pool.processes)})
        self._deaths.watch(name, pidfds)
        try:
            if (former := self._exchange.members.former(join)) is not None:
                self._remove(former)
            self._exchange.join(session, name, join)
        except (RefusedError, LayoutError):
            self._deaths.forget(name)
            raise
        self._welcome(session, join)

    def _welcome(self, session: Session, join: Join) -> None:
        """Answer a `Join`. An engine of another PID namespace also gets a pidfd of this service."""
        if join.process.near:
            self._send(session, Joined(self._me))
            return
        try:
            mine = os.pidfd_open(self._me.pid)
        except OSError as error:
            raise RefusedError(f"the service has no descriptor left ({error.strerror}); {MORE}") from error
        try:
            session.socket.send(pack_message(Joined(self._me)), (mine,))
        finally:
            os.close(mine)

    def _relayed(self, session: Session, told: Descriptors) -> None:
        came = session.socket.take_descriptors()
        try:
            self._relay.tell(session, told, came)
        finally:
            close_all(came)

    def _remove(self, member: str) -> None:
        """Remove a member that has left or died."""
        self._deaths.forget(member)
        session = self._exchange.leave(member)
        if session is not None:
            self._relay.forget(session)
            self._sessions.hang_up(session)  # another process of the engine may be alive: it joins again

    def _send(self, session: Session, reply: Reply) -> bool:
        """Send without waiting; False, which is counted, if the connection is gone or does not keep up."""
        if not session.send(reply):
            self._counters["reply_dropped"] += 1
            return False
        return True
