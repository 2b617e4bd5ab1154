"""One connection to a service, from the joining on, and the replica that its stream keeps current."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import zmq

from kvmarket import counters
from kvmarket.errors import (
    AddressError,
    KVMarketError,
    LayoutError,
    MessageError,
    MissingBlockError,
    NamespaceError,
    NotJoinedError,
    RefusedError,
    RegistryError,
    VersionError,
)
from kvmarket.registry.address import Address
from kvmarket.registry.launch import start_service
from kvmarket.registry.messages import (
    MAX_MESSAGE_BYTES,
    Changes,
    Join,
    Joined,
    Leave,
    Ping,
    Refused,
    Snapshot,
    Sync,
    pack_message,
    unpack_reply,
)
from kvmarket.registry.replica import Replica
from kvmarket.shared_file import Process

WAITING_MESSAGES = 10_000  # of ours, for a service that does not keep up: all that a large cache offers again
START_SECONDS = 60.0  # a cold start of the service on a loaded two-core machine takes a few
ANSWER_SECONDS = 1.0
QUIET_SECONDS = 5.0  # without any news: then we ask whether we are still a member
JOIN_SECONDS = 0.01  # so long at a time a snapshot is put in


class Line:
    """A connection of a member. `replica` goes on answering when the connection is lost. Not thread-safe."""

    def __init__(self, socket: zmq.Socket[bytes], join: Join) -> None:
        """Send `join`; the answer is not waited for."""
        self._socket: zmq.Socket[bytes] | None = socket
        self.replica = Replica(join.block_size, [record.pool for record in join.pools])
        self.pidfd = -1  # readable when the service has died
        self.fd = int(socket.getsockopt(zmq.FD))  # readable when something has come, until the socket is next used
        self.muted = False  # sends nothing: all that stands is about to be offered again
        self.missing = False  # whether the service has missed something that we said
        self.lost = False  # whether the service does not know us: the connection broke and was made again
        self._heard = time.monotonic()
        self._sync_due = False  # a snapshot is wanted, and the service did not take the request yet
        socket.send(pack_message(join))

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False, and counted, if the service is away or does not keep up."""
        if self.muted:
            return False
        if self._socket is None:
            counters.add("message_dropped", reason="the service is away")
            return False
        if not self._say(frame):
            counters.add("message_dropped", reason="the service does not keep up")
            self.missing = True
            return False
        return True

    def readable(self) -> bool:
        """Whether something has come that was not received. Costs 1 us."""
        return self._socket is not None and bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def drain(self, end: float) -> tuple[bool, list[str]]:
        """Put what has come into the replica until ``perf_counter() >= end``.

        Whether that was all of it, and the pools that have gone.
        """
        if self._sync_due:
            self._sync_due = not self._say(pack_message(Sync()))
        if time.monotonic() - self._heard > QUIET_SECONDS:
            self._heard = time.monotonic()
            self._say(pack_message(Ping()))
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
        if answer is None or self._socket is None:
            return False
        self.pidfd = _watch_process(answer.service)
        poll = zmq.Poller()
        poll.register(self._socket, zmq.POLLIN)
        poll.register(self.pidfd, zmq.POLLIN)
        while not self.replica.whole:  # what comes meanwhile may never end
            current, _ = self.drain(time.perf_counter() + JOIN_SECONDS)
            ready = dict(poll.poll(100 if current and not self.replica.whole else 0))
            if self.pidfd in ready or self.lost or closing.is_set() or time.monotonic() > deadline:
                return False
        return True

    def leave(self) -> None:
        """Tell the service that we leave; if it does not take that, it learns of it when this process ends."""
        self._say(pack_message(Leave()))
        self.close(linger=200)

    def close(self, linger: int = 0) -> None:
        """Close the connection, after `linger` ms at most for what is on its way. May be called twice."""
        if self._socket is not None:
            self._socket.close(linger=linger)
            self._socket = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _say(self, frame: bytes) -> bool:
        """Send without waiting; whether it went out."""
        if self._socket is None:
            return False
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _answer(self) -> Joined | None:
        """The answer to our joining, None if there is none within a second."""
        if self._socket is None or not self._socket.poll(int(ANSWER_SECONDS * 1000)):
            return None
        reply = unpack_reply(self._socket.recv())
        if isinstance(reply, Refused):
            raise _refusal(reply)
        return reply if isinstance(reply, Joined) else None

    def _receive(self) -> bool:
        """Hand the replica one message, if one has come; whether one had."""
        if self._socket is None or not self.readable():
            return False
        frame = self._socket.recv(zmq.NOBLOCK)
        self._heard = time.monotonic()
        try:
            reply = unpack_reply(frame)
        except RegistryError as error:
            counters.add("message_refused", reason=type(error).__name__)
            return True
        if isinstance(reply, Refused):
            counters.add("refused_by_service", reason=reply.kind)
            self.missing = self.missing or reply.kind == MissingBlockError.__name__
            self.lost = self.lost or reply.kind == NotJoinedError.__name__
        elif isinstance(reply, Changes | Snapshot) and not self.replica.receive(reply):
            counters.add("stream_gap", reason="changes were missed; all that stands is asked for again")
            self._sync_due = True
        return True


def join_service(
    context: zmq.Context[zmq.Socket[bytes]], address: Address, join: Join, closing: threading.Event
) -> Line:
    """Join on a fresh connection, starting the service where there is none.

    Raises AddressError when that does not work within `START_SECONDS`, and what a refusal stands for.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not closing.is_set():
        if not address.service_lives():
            start_service(address)
            continue
        line = Line(_dealer(context, address), join)
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


def _dealer(context: zmq.Context[zmq.Socket[bytes]], address: Address) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, WAITING_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.connect(address.endpoint)
    return socket


def _watch_process(process: Process) -> int:
    """A pidfd of the service. Raises RefusedError where it is gone, or belongs to somebody else."""
    try:
        owner = Path(f"/proc/{process.pid}").stat().st_uid
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        raise RefusedError(f"the service (process {process.pid}) cannot be watched: {error.strerror}") from error
    if owner != os.getuid():
        os.close(pidfd)
        raise RefusedError(f"the service (process {process.pid}) is another user's; give an address of your own")
    return pidfd


def _refusal(refused: Refused) -> KVMarketError:
    """The error a refusal stands for: the service names it by its class."""
    kinds = {kind.__name__: kind for kind in (VersionError, LayoutError, NamespaceError, MessageError)}
    return kinds.get(refused.kind, RefusedError)(refused.reason)
