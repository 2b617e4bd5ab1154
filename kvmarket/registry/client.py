"""An engine's line to the service, and its replica of what the service knows: a match asks nobody.

The stream is drained on the thread that matches, a little at a time, so that no other thread holds the interpreter when
a match is due; only where nobody has matched for a while does the watching thread do it. When the service dies, the
watching thread starts it anew, joins again and calls `on_rejoin`, so that the engine can offer what it still holds; the
old replica answers until then.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import zmq

from kvmarket import counters
from kvmarket.errors import (
    AddressError,
    KVMarketError,
    LayoutError,
    MessageError,
    NamespaceError,
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
    PoolRecord,
    Refused,
    Reply,
    Retire,
    Snapshot,
    Sync,
    pack_message,
    unpack_reply,
)
from kvmarket.registry.offering import Offering
from kvmarket.registry.replica import OwnRetirement, Replica
from kvmarket.registry.space import Run
from kvmarket.registry.tokens import Int32s, Int64s
from kvmarket.shared_file import Process

START_SECONDS = 60.0  # a cold start of the service on a loaded two-core machine takes a few
IDLE_SECONDS = 0.25  # a replica that was not current for so long is drained by the watching thread
TURN_SECONDS = 0.001  # for so long at a time
WATCH_SECONDS = 0.1


class Client:
    """One engine's membership of a market. Methods may be called from any thread."""

    def __init__(
        self,
        address: Address,
        join: Join,
        on_gone: Callable[[Sequence[str]], None],
        on_rejoin: Callable[[], None],
    ) -> None:
        """Join the market at `address`, starting its service if nobody has; know all that it knows.

        Both callbacks run on the watching thread; `on_gone` hears of pools that have gone within some 0.1 s. Raises
        VersionError, AddressError, LayoutError, NamespaceError or RefusedError, each with what to do.
        """
        self._address, self._join = address, join
        self._on_gone, self._on_rejoin = on_gone, on_rejoin
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._gone: list[str] = []
        self._sync_due = False  # a snapshot is wanted, and the service did not take the request yet
        self._socket: zmq.Socket[bytes] | None = None
        self._current_at = 0.0  # when the replica last had all that had come
        try:
            self._socket, self._replica, self._pidfd = self._connect()
        except KVMarketError:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._watch, name="kvmarket-watch", daemon=True)
        self._thread.start()

    def offer(self, offering: Offering) -> bool:
        """Offer these blocks. Its arrays are kept: do not write to them.

        Never waits; False, and counted, if the service is away or does not keep up. Costs 10 us and 1 us a KiB.
        """
        frames = pack_message(offering.message())
        with self._lock:
            self._replica.add(offering)
            return self._send(frames)

    def retire(self, pool: str, slots: Int64s | None) -> bool:
        """Take the offers of these slots down, of the whole pool when None. As `offer`."""
        frames = pack_message(Retire(pool, None if slots is None else slots.tobytes()))
        with self._lock:
            self._replica.add(OwnRetirement(pool, slots))
            return self._send(frames)

    def match(
        self, tokens: Int32s, tenant: str, first: int, without: Collection[str], seconds: float
    ) -> tuple[list[Run], list[PoolRecord]]:
        """The longest offered prefix, as `Space.match`, and the records of the pools in it.

        Before that, what has come of the stream is put into the replica, for at most some `seconds`.
        """
        with self._lock:
            self._drain(seconds)
            space = self._replica.space
            runs = space.match(tokens, tenant, first, without)
            return runs, [space.pools[run.pool].record for run in runs]

    def drain(self, seconds: float) -> None:
        """Put what has come of the stream into the replica, for at most some `seconds`; never waits for more."""
        with self._lock:
            self._drain(seconds)

    def close(self) -> None:
        """Leave the market: the service takes everything of this engine down. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        with self._lock:
            if self._socket is not None:
                with suppress(zmq.Again):  # then the service learns of it when this process ends
                    self._socket.send_multipart(pack_message(Leave()), zmq.NOBLOCK)
                self._socket.close(linger=200)
                self._socket = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._context.term()

    def _send(self, frames: list[bytes]) -> bool:
        if self._socket is None:
            counters.add("message_dropped", reason="the service is away")
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            counters.add("message_dropped", reason="the service does not keep up")
            return False
        return True

    def _drain(self, seconds: float) -> None:
        if self._sync_due:
            self._sync_due = not self._send(pack_message(Sync()))
        end = time.perf_counter() + seconds
        while True:
            if self._replica.pending:
                self._gone += self._replica.step()
            elif self._socket is None or not self._receive(self._socket, self._replica):
                self._current_at = time.monotonic()
                return
            if time.perf_counter() >= end:
                return

    def _receive(self, socket: zmq.Socket[bytes], replica: Replica) -> bool:
        """Hand the replica one message, if one has come; whether one had."""
        try:
            reply = unpack_reply(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return False
        except RegistryError as error:
            counters.add("message_refused", reason=type(error).__name__)
            return True
        if isinstance(reply, Changes | Snapshot):
            if not replica.receive(reply):
                counters.add("stream_gap", reason="changes were missed; all that stands is asked for again")
                self._sync_due = True
        elif isinstance(reply, Refused):
            counters.add("refused_by_service", reason=reply.kind)
        return True

    def _watch(self) -> None:
        """Drain what nobody else does, say which pools have gone, and rejoin when the service dies."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        while not self._closing.is_set():
            if poll.poll(WATCH_SECONDS * 1000):
                poll.unregister(self._pidfd)
                if not self._rejoin():
                    return
                poll.register(self._pidfd, select.POLLIN)
            self._catch_up()
            with self._lock:
                gone, self._gone = self._gone, []
            if gone:
                self._on_gone(gone)

    def _catch_up(self) -> None:
        """Drain a replica that was not current for a while, and let others have their turn in between."""
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end and time.monotonic() - self._current_at > IDLE_SECONDS:
            self.drain(TURN_SECONDS)
            time.sleep(TURN_SECONDS / 10)

    def _rejoin(self) -> bool:
        """Join anew after the service died, trying until it works or the client is closed."""
        counters.add("service_lost", reason="the service of the market died; joining again")
        with self._lock:
            if self._socket is not None:
                self._socket.close(linger=0)
            self._socket = None
        os.close(self._pidfd)
        self._pidfd = -1
        while not self._closing.is_set():
            try:
                socket, replica, self._pidfd = self._connect()
            except KVMarketError as error:
                counters.add("rejoin_failed", reason=type(error).__name__)
                self._closing.wait(0.5)
                continue
            with self._lock:
                self._gone += [pool for pool in self._replica.space.pools if pool not in replica.space.pools]
                self._socket, self._replica, self._sync_due = socket, replica, False
            self._on_rejoin()
            return True
        return False

    def _connect(self) -> tuple[zmq.Socket[bytes], Replica, int]:
        """Join on a fresh connection, starting the service where there is none; a replica, and a pidfd of the service.

        The replica has all that the service knew then.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not self._closing.is_set():
            if not self._address.service_lives():
                start_service(self._address)
                continue
            socket = self._dealer()
            try:
                joined = self._ask(socket)
                if joined is not None:
                    pidfd = _watch_process(joined.service)
                    replica = self._synced(socket, pidfd, deadline)
                    if replica is not None:
                        return socket, replica, pidfd
                    os.close(pidfd)
            except KVMarketError:
                socket.close(linger=0)
                raise
            socket.close(linger=0)
        raise AddressError(
            f"the service at {self._address} did not answer within {START_SECONDS:.0f} s; see {self._address.log}, "
            "or start it by hand with `kvmarket serve`"
        )

    def _dealer(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 10_000)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.connect(self._address.endpoint)
        return socket

    def _ask(self, socket: zmq.Socket[bytes]) -> Joined | None:
        """The answer to our joining, None if there is none within a second. Raises what a refusal stands for."""
        socket.send_multipart(pack_message(self._join))
        if not socket.poll(1000):
            return None
        reply: Reply = unpack_reply(socket.recv_multipart())
        if isinstance(reply, Refused):
            raise _refusal(reply)
        return reply if isinstance(reply, Joined) else None

    def _synced(self, socket: zmq.Socket[bytes], pidfd: int, deadline: float) -> Replica | None:
        """A replica of all that stands; None when the service died meanwhile, or the client is closed."""
        replica = Replica(self._join.block_size, [record.pool for record in self._join.pools])
        poll = zmq.Poller()
        poll.register(socket, zmq.POLLIN)
        poll.register(pidfd, zmq.POLLIN)
        while not replica.synced or replica.pending:
            if replica.pending:
                replica.step()
            elif not self._receive(socket, replica):
                ready = dict(poll.poll(100))
                if pidfd in ready or self._closing.is_set() or time.monotonic() > deadline:
                    return None
        return replica


def _watch_process(process: Process) -> int:
    """A pidfd of the service. Raises RefusedError where it is gone, or belongs to somebody else."""
    try:
        if Path(f"/proc/{process.pid}").stat().st_uid != os.getuid():
            raise RefusedError(
                f"the service (process {process.pid}) belongs to another user; give an address of your own"
            )
        return os.pidfd_open(process.pid)
    except OSError as error:
        raise RefusedError(f"the service (process {process.pid}) cannot be watched: {error.strerror}") from error


def _refusal(refused: Refused) -> KVMarketError:
    """The error a refusal stands for: the service names it by its class."""
    kinds = {kind.__name__: kind for kind in (VersionError, LayoutError, NamespaceError, MessageError)}
    return kinds.get(refused.kind, RefusedError)(refused.reason)
