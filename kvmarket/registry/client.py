"""An engine's line to the service: requests on one connection, notices on another, watched by one thread.

`send` and `match` never wait for a service that is away: what cannot be sent is dropped and counted, a match is then a
miss. When the service dies, the watching thread starts it anew, joins again and calls `on_rejoin`, so that the engine
can offer what it still holds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

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
    Attach,
    Attached,
    Gone,
    Join,
    Joined,
    Leave,
    Match,
    Matched,
    OfferBlocks,
    Refused,
    Reply,
    Request,
    Retire,
    pack_message,
    unpack_reply,
)
from kvmarket.shared_file import Process

START_SECONDS = 60.0  # a cold start of the service on a loaded two-core machine takes a few
MATCH_SECONDS = 0.25
BACK_OFF_SECONDS = 1.0  # after a silent match, the next ones miss at once for so long


class Client:
    """One engine's membership of a market. `send` and `match` may be called from any thread; one at a time goes out."""

    def __init__(
        self,
        address: Address,
        join: Join,
        on_gone: Callable[[tuple[str, ...]], None],
        on_rejoin: Callable[[], None],
    ) -> None:
        """Join the market at `address`, starting its service if nobody has. Both callbacks run on the watching thread.

        Raises VersionError, AddressError, LayoutError, NamespaceError or RefusedError, each with what to do.
        """
        self._address, self._join = address, join
        self._on_gone, self._on_rejoin = on_gone, on_rejoin
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._next_request = 0
        self._silent_until = 0.0
        self._requests: zmq.Socket[bytes] | None = None
        try:
            self._requests, self._notices, self._pidfd = self._connect()
        except KVMarketError:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._watch, name="kvmarket-notices", daemon=True)
        self._thread.start()

    def send(self, message: OfferBlocks | Retire) -> bool:
        """Send without waiting; False, and counted, if the service is away or does not keep up.

        Costs 10 us and 1 us a KiB.
        """
        with self._lock:
            if self._requests is not None:
                try:
                    self._requests.send_multipart(pack_message(message), zmq.NOBLOCK)
                except zmq.Again:
                    counters.add("message_dropped", reason="the service does not keep up")
                    return False
                return True
        counters.add("message_dropped", reason="the service is away")
        return False

    def match(
        self, tokens: bytes, tenant: str, first: int, without: tuple[str, ...], known: tuple[str, ...]
    ) -> Matched | None:
        """Ask for the longest offered prefix.

        None, and counted, when the service is away or silent for `MATCH_SECONDS`.
        """
        with self._lock:
            if self._requests is None or time.monotonic() < self._silent_until:
                counters.add("match_failed", reason="the service is away")
                return None
            self._next_request += 1
            number = self._next_request
            try:
                self._requests.send_multipart(
                    pack_message(Match(number, tenant, tokens, first, without, known)), zmq.NOBLOCK
                )
                reply = self._await_match(self._requests, number)
            except (zmq.Again, MessageError, VersionError) as error:
                counters.add("match_failed", reason=type(error).__name__)
                return None
        if reply is None:
            self._silent_until = time.monotonic() + BACK_OFF_SECONDS
            counters.add("match_failed", reason="the service was silent")
        return reply

    def close(self) -> None:
        """Leave the market: the service takes everything of this engine down. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        with self._lock:
            if self._requests is not None:
                with suppress(zmq.Again):  # then the service learns of it when this process ends
                    self._requests.send_multipart(pack_message(Leave()), zmq.NOBLOCK)
                self._requests.close(linger=200)
                self._requests = None
        self._notices.close(linger=0)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._context.term()

    def _await_match(self, socket: zmq.Socket[bytes], number: int) -> Matched | None:
        """The answer to match `number`; answers to earlier ones, which came too late, are thrown away."""
        deadline = time.monotonic() + MATCH_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if not socket.poll(int(left * 1000) + 1):
                continue
            reply = unpack_reply(socket.recv_multipart())
            if isinstance(reply, Matched) and reply.request == number:
                return reply
            if isinstance(reply, Refused):
                counters.add("refused_by_service", reason=reply.kind)
        return None

    def _watch(self) -> None:
        """Hear notices, and rejoin when the service dies."""
        poller = zmq.Poller()
        poller.register(self._notices, zmq.POLLIN)
        poller.register(self._pidfd, zmq.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(100))
            if self._notices in ready:
                try:
                    notice = unpack_reply(self._notices.recv_multipart())
                except RegistryError as error:
                    counters.add("notice_dropped", reason=type(error).__name__)
                    continue
                if isinstance(notice, Gone):
                    self._on_gone(notice.pools)
            if self._pidfd in ready:
                poller.unregister(self._notices)
                poller.unregister(self._pidfd)
                if not self._rejoin():
                    return
                poller.register(self._notices, zmq.POLLIN)
                poller.register(self._pidfd, zmq.POLLIN)

    def _rejoin(self) -> bool:
        """Join anew after the service died, trying until it works or the client is closed."""
        counters.add("service_lost", reason="the service of the market died; joining again")
        with self._lock:
            if self._requests is not None:
                self._requests.close(linger=0)
            self._requests = None
        self._notices.close(linger=0)
        os.close(self._pidfd)
        self._pidfd = -1
        while not self._closing.is_set():
            try:
                requests, self._notices, self._pidfd = self._connect()
            except KVMarketError as error:
                counters.add("rejoin_failed", reason=type(error).__name__)
                self._closing.wait(0.5)
                continue
            with self._lock:
                self._requests = requests
            self._on_rejoin()
            return True
        return False

    def _connect(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], int]:
        """Join and attach on two fresh connections, starting the service where there is none.

        Also a pidfd of the service.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not self._closing.is_set():
            if not self._address.service_lives():
                start_service(self._address)
                continue
            requests = self._dealer()
            joined = self._ask(requests, self._join)
            if not isinstance(joined, Joined):
                requests.close(linger=0)
                continue
            notices = self._dealer()
            try:
                if not isinstance(self._ask(notices, Attach(joined.member)), Attached):
                    raise RefusedError("the service did not answer a second connection; try again")
                return requests, notices, _watch_process(joined.service)
            except KVMarketError:
                requests.close(linger=0)
                notices.close(linger=0)
                raise
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

    def _ask(self, socket: zmq.Socket[bytes], request: Request) -> Reply | None:
        """The answer to `request`, None if there is none within a second. Raises what a refusal stands for."""
        try:
            socket.send_multipart(pack_message(request))
            if not socket.poll(1000):
                return None
            reply = unpack_reply(socket.recv_multipart())
        except RegistryError:
            socket.close(linger=0)
            raise
        if isinstance(reply, Refused):
            socket.close(linger=0)
            raise _refusal(reply)
        return reply


def _watch_process(process: Process) -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError as error:
        raise RefusedError(f"the service (process {process.pid}) cannot be watched: {error.strerror}") from error


def _refusal(refused: Refused) -> KVMarketError:
    """The error a refusal stands for: the service names it by its class."""
    kinds = {kind.__name__: kind for kind in (VersionError, LayoutError, NamespaceError, MessageError)}
    return kinds.get(refused.kind, RefusedError)(refused.reason)
