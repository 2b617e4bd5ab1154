"""One connection to a service, from the joining on, and the replica that its stream keeps current."""

from __future__ import annotations

import os
import select
import threading
import time

from kvmarket import counters
from kvmarket.errors import (
    AddressError,
    KVMarketError,
    LayoutError,
    MessageError,
    MissingBlockError,
    NamespaceError,
    RefusedError,
    RegistryError,
    VersionError,
)
from kvmarket.registry.address import Address
from kvmarket.registry.launch import start_service
from kvmarket.registry.messages import (
    Changes,
    Join,
    Joined,
    Refused,
    Snapshot,
    Sync,
    pack_message,
    unpack_reply,
)
from kvmarket.registry.replica import Replica
from kvmarket.registry.watching import watch
from kvmarket.registry.wire import Wire, dial

WAITING_MESSAGES = 10_000  # of ours, for a service that does not keep up: all that a large cache offers again
START_SECONDS = 60.0  # a cold start of the service on a loaded two-core machine takes a few
ANSWER_SECONDS = 1.0
KNOCK_SECONDS = 0.02  # after which we try again to be let in
JOIN_SECONDS = 0.01  # so long at a time a snapshot is put in


class Line:
    """A connection of a member. `replica` goes on answering when the connection is lost. Not thread-safe."""

    def __init__(self, wire: Wire, join: Join) -> None:
        """Send `join`; the answer is not waited for."""
        self.wire = wire  # readable when something has come, closed when the service has died or will not have us
        self.replica = Replica(join.block_size, [record.pool for record in join.pools])
        self.pidfd = -1  # readable when the service has died
        self.muted = False  # sends nothing: all that stands is about to be offered again
        self.missing = False  # whether the service has missed something that we said
        self._sync_due = False  # a snapshot is wanted, and the service did not take the request yet
        self.wire.send(pack_message(join))

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False, and counted, if the service is away or does not keep up."""
        if self.muted:
            return False
        if self.wire.send(frame):
            return True
        late = self.wire.blocked  # else it has died, and all is offered when we join again
        counters.add("message_dropped", reason="the service does not keep up" if late else "the service is away")
        self.missing = self.missing or late
        return False

    def drain(self, end: float) -> tuple[bool, list[str]]:
        """Send what waits, and put what has come into the replica until ``perf_counter() >= end``.

        Whether that was all of it, and the pools that have gone.
        """
        self.wire.flush()
        if self._sync_due:
            self._sync_due = not self.wire.send(pack_message(Sync()))
        gone: list[str] = []
        while True:
            if self.replica.pending:
                gone += self.replica.step()
            elif not self._receive():
                return True, gone
            if time.perf_counter() >= end:
                return False, gone

    def joined(self, closing: threading.Event, deadline: float) -> bool:
        """Wait until the replica has all that the service knew when it let us in.

        False when it does not answer in time, died, or `closing` is set. Raises what a refusal stands for.
        """
        answer = self._answer()
        if answer is None:
            return False
        try:
            self.pidfd = watch(answer.service, "the service")
        except RefusedError:
            if self._hung_up():  # it died meanwhile: there is nothing to watch
                return False
            raise
        poll = select.poll()
        poll.register(self.wire, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        while not self.replica.whole:  # what comes meanwhile may never end
            current, _ = self.drain(time.perf_counter() + JOIN_SECONDS)
            ready = dict(poll.poll(100 if current and not self.replica.whole else 0))
            if self.pidfd in ready or self.wire.closed or closing.is_set() or time.monotonic() > deadline:
                return False
        return True

    def close(self) -> None:
        """Leave: the service takes down all that we offered. May be called twice."""
        self.wire.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _hung_up(self) -> bool:
        """Whether the service's end of the connection is gone: a process has closed it before it is no more."""
        poll = select.poll()
        poll.register(self.wire, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def _answer(self) -> Joined | None:
        """The answer to our joining, None if there is none within a second."""
        frame = self.wire.wait(ANSWER_SECONDS)
        if frame is None:
            return None
        reply = unpack_reply(frame)
        if isinstance(reply, Refused):
            raise _refusal(reply)
        return reply if isinstance(reply, Joined) else None

    def _receive(self) -> bool:
        """Hand the replica one message, if one has come; whether one had."""
        try:
            frame = self.wire.receive()
            if frame is None:
                return False
            reply = unpack_reply(frame)
        except RegistryError as error:
            counters.add("message_refused", reason=type(error).__name__)
            return True
        if isinstance(reply, Refused):
            counters.add("refused_by_service", reason=reply.kind)
            self.missing = self.missing or reply.kind == MissingBlockError.__name__
        elif isinstance(reply, Changes | Snapshot) and not self.replica.receive(reply):
            counters.add("stream_gap", reason="changes were missed; all that stands is asked for again")
            self._sync_due = True
        return True


def join_service(address: Address, join: Join, closing: threading.Event) -> Line:
    """Join on a fresh connection, starting the service where there is none.

    Raises AddressError when that does not work within `START_SECONDS`, and what a refusal stands for.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not closing.is_set():
        if not address.service_lives():
            start_service(address)
            continue
        try:
            wire = dial(address.socket, WAITING_MESSAGES)
        except OSError:  # one of JUST_NOT_NOW
            closing.wait(KNOCK_SECONDS)
            continue
        line = Line(wire, join)
        try:
            if line.joined(closing, deadline):
                return line
        except KVMarketError:
            line.close()
            raise
        line.close()
    raise AddressError(
        f"the service at {address} did not answer within {START_SECONDS:.0f} s; see {address.log}, "
        "or start it by hand with `kvmarket serve`"
    )


def _refusal(refused: Refused) -> KVMarketError:
    """The error a refusal stands for: the service names it by its class."""
    kinds = {kind.__name__: kind for kind in (VersionError, LayoutError, NamespaceError, MessageError)}
    return kinds.get(refused.kind, RefusedError)(refused.reason)
