"""One connection of an engine to a service, from the `Join` message on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

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
from kvmarket.processes.shared_file import Process
from kvmarket.processes.watching import watch
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.launch import start_service
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.descriptors import close_all
from kvmarket.registry.protocol.messages import (
    Again,
    AskDescriptors,
    Changes,
    Descriptors,
    Join,
    Joined,
    Refused,
    pack_message,
    unpack_reply,
)
from kvmarket.registry.protocol.numbering import Heard
from kvmarket.registry.protocol.packets import PacketSocket, dial
from kvmarket.registry.protocol.status import Report, report_of
from kvmarket.registry.space.feed import Feed
from kvmarket.registry.space.snapshot import SnapshotParts

START_SECONDS = 60.0  # the most that joining takes; a cold start on a loaded two-core machine takes a few seconds
ANSWER_SECONDS = 1.0
KNOCK_SECONDS = 0.02  # between two attempts to connect
REPORT_SECONDS = 1.0  # between two reports
REFUSED_SECONDS, LONGEST_REFUSED = 1.0, 60.0  # until a snapshot follows a refused offer: doubled each time


class Connection:
    """A connection of a member: received changes go to `replica`, its own go out by `feed`. Not thread-safe."""

    def __init__(
        self,
        sock: PacketSocket,
        join: Join,
        replica: Replica,
        snapshot: Callable[[], SnapshotParts],
        foreign: ForeignPools,
    ) -> None:
        """Send `join` without waiting for the answer. `snapshot` returns this engine's offers. Takes over `sock`."""
        self.socket = sock  # closed when the service has died or has closed the connection
        self.feed = Feed(sock, snapshot)
        self.pidfd = -1  # readable when the service has died
        self.service: Process | None = None
        self._replica, self._foreign = replica, foreign
        self._heard = Heard(time.monotonic())
        self._refused_at, self._pause = 0.0, REFUSED_SECONDS
        self._report_at, self._reported = time.monotonic() + REPORT_SECONDS, Report({})
        self.socket.send(pack_message(join))

    def drain(self, end: float) -> tuple[bool, list[str]]:
        """Send unsent packets, and put received changes into the replica until ``perf_counter() >= end``.

        Returns whether all received changes are in the replica, and the pools that have left.
        """
        self.socket.flush()
        self.look_after(time.monotonic())
        gone: list[str] = []
        while True:
            if self._replica.pending:
                gone += self._replica.step()
            elif not self._receive():
                return True, gone
            if time.perf_counter() >= end:
                return False, gone

    def look_after(self, now: float) -> None:
        """Periodic work: ask for a snapshot, repeat the last number, report counters, begin a snapshot if refused."""
        if (again := self._heard.wanted(now)) is not None:
            if again.seen:  # else nothing was missed: the first snapshot has not come yet
                counters.add("stream_gap", reason="changes were missed; all that stands is asked for again")
            self.socket.send(pack_message(again))
        self.feed.mark(now)
        if now > self._report_at and not self.socket.blocked:
            self._report_at = now + REPORT_SECONDS
            self._report()
        if self._refused_at and now > self._refused_at:
            self._refused_at = 0.0
            counters.add("offered_again", reason="the service refused an offer that goes on from one it does not have")
            self.feed.begin()

    def joined(self, closing: threading.Event) -> bool:
        """Wait for the answer to `Join`, and watch the service; False without an answer within `ANSWER_SECONDS`.

        Raises the error that a refusal names.
        """
        answer = self._answer()
        if answer is None or closing.is_set():
            return False
        self.service = answer.service
        if not answer.service.near:  # of another PID namespace: it has sent a pidfd of itself
            self.pidfd, *surplus = self.socket.take_descriptors() or [-1]
            close_all(surplus)
            return self.pidfd >= 0
        try:
            self.pidfd = watch(answer.service, "the service")
        except RefusedError:
            if self.socket.hung_up:  # it died meanwhile: its end closes before its process is gone
                return False
            raise
        return True

    def close(self) -> None:
        """Leave: the service takes down all our offers. May be called twice."""
        self.socket.close()
        self.feed.end()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _report(self) -> None:
        """Send the counters of this process, if they have changed. Costs about 30 us."""
        report = report_of(counters.snapshot())
        if report != self._reported and self.socket.send(pack_message(report)):
            self._reported = report

    def _answer(self) -> Joined | None:
        """The answer to `Join`; None without one within `ANSWER_SECONDS`. Raises the error that a refusal names."""
        frame = self.socket.wait(ANSWER_SECONDS)
        if frame is None:
            return None
        reply = unpack_reply(frame)
        if isinstance(reply, Refused):
            raise _refusal(reply)
        return reply if isinstance(reply, Joined) else None

    def _receive(self) -> bool:
        """Receive and handle one message; return whether one had come."""
        try:
            frame = self.socket.receive()
            if frame is None:
                return False
            reply = unpack_reply(frame)
        except RegistryError as error:
            counters.add("message_refused", reason=type(error).__name__, detail=error)
            return True
        match reply:
            case Changes():
                if self._heard.accept(reply):
                    self._replica.receive(reply)
                elif self._heard.broken:
                    self.look_after(time.monotonic())
            case Again():
                if self.feed.asked(reply):
                    counters.add("offered_again", reason="the service missed something that this engine told")
            case AskDescriptors():
                self._foreign.answer(reply, self.socket)
            case Descriptors():
                self._foreign.heard(reply, self.socket.take_descriptors())
            case Refused():
                counters.add("refused_by_service", reason=reply.kind, detail=reply.reason)
                if reply.kind == MissingBlockError.__name__ and not self._refused_at:
                    self._refused_at = time.monotonic() + self._pause
                    self._pause = min(2 * self._pause, LONGEST_REFUSED)
        return True


def join_service(
    address: Address,
    join: Join,
    replica: Replica,
    snapshot: Callable[[], SnapshotParts],
    foreign: ForeignPools,
    closing: threading.Event,
) -> Connection:
    """Join by a new connection, and start the service if none runs.

    Raises AddressError if that does not work within `START_SECONDS` or before `closing` is set, the errors of
    `start_service` and `dial`, and the error that a refusal names.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not closing.is_set():
        if not address.service_lives():
            start_service(address)
            continue
        try:
            sock = dial(address.socket)
        except OSError:  # one of JUST_NOT_NOW
            closing.wait(KNOCK_SECONDS)
            continue
        connection = Connection(sock, join, replica, snapshot, foreign)
        try:
            if connection.joined(closing):
                return connection
        except KVMarketError:
            connection.close()
            raise
        connection.close()
    raise AddressError(
        f"the service at {address} did not answer within {START_SECONDS:.0f} s; see {address.log}, "
        "or start it by hand with `kvmarket serve`"
    )


def _refusal(refused: Refused) -> KVMarketError:
    """The error that a refusal names, by its class; RefusedError for other names."""
    kinds = {kind.__name__: kind for kind in (VersionError, LayoutError, NamespaceError, MessageError)}
    return kinds.get(refused.kind, RefusedError)(refused.reason)
