"""The lender's side: a socket of its own at which other processes of the user ask for another size.

It is served in turns by the one thread of the lender, and nobody who connects can make that wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from kvmarket import counters
from kvmarket.errors import AddressError, MessageError, MisuseError, VersionError
from kvmarket.lend.resize.messages import MOST_BYTES, Lent, Question, unpack_question
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address, identity
from kvmarket.registry.protocol.lender_sockets import listen_at, remove_dead, socket_of
from kvmarket.registry.protocol.messages import Refused, pack_message
from kvmarket.registry.protocol.packets import PacketListener, PacketSocket
from kvmarket.support.supervised import survived

MOST_ASKERS = 16  # connections at a time; others wait in the kernel
SILENT_SECONDS = 1.0  # after which a connection that says nothing is closed
LOOK_SECONDS = 1.0  # between two checks whether the socket is still there: cleaners of /tmp remove it


class Requests:
    """The socket of this process for the lender of the market at an address. One in a process. Not thread-safe."""

    def __init__(self, place: Address, answer: Callable[[Question], Lent]) -> None:
        """Make nothing yet: the first `turn` does.

        `answer` does what a question asks for and returns the state after it; it may raise MisuseError, as a refusal.
        """
        self._place, self._answer = place, answer
        self._listener: PacketListener | None = None
        self._socket: tuple[int, int] | None = None  # identity of its file
        self._askers: dict[PacketSocket, float] = {}  # connection -> when it is closed if it says nothing
        self._look_at = 0.0

    def turn(self) -> None:
        """Let askers in, and answer one question of each; never waits. Costs 5 us while nobody asks.

        Makes the socket anew where it is missing. What fails is counted, and tried again.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._keep()
        try:
            while self._listener and len(self._askers) < MOST_ASKERS and (sock := self._listener.accept()) is not None:
                self._askers[sock] = now + SILENT_SECONDS
        except OSError as error:
            counters.add(
                "lender_not_asked", reason="no descriptor is left; raise the limit of open files", detail=error
            )
        for sock, until in list(self._askers.items()):
            with survived("a request to a lender") as turn:
                if self._hear(sock):
                    self._askers[sock] = time.monotonic() + SILENT_SECONDS
                elif now >= until:
                    sock.close()
            if turn.failed:
                sock.close()
            if sock.fileno() < 0:
                del self._askers[sock]

    def close(self) -> None:
        """Remove the socket, and close all connections: who waits for an answer hears that there is none."""
        for sock in self._askers:
            sock.close()
        self._askers.clear()
        if self._listener is not None:
            self._listener.close()
            with suppress(AddressError, OSError):
                path = socket_of(self._place, Process.current()).path
                if identity(path) == self._socket:
                    path.unlink(missing_ok=True)

    def _keep(self) -> None:
        """Make the socket, if it is missing or was replaced, and remove those of dead lenders then."""
        try:
            mine = socket_of(self._place, Process.current())
            found = identity(mine.path)
            if found is not None and found == self._socket:
                return
            self._place.prepare()
            listener = listen_at(mine, MOST_BYTES)
            if self._listener is not None:
                self._listener.close()
            self._listener, self._socket = listener, identity(mine.path)
            remove_dead(self._place)
        except (AddressError, OSError) as error:
            counters.add("lender_not_asked", reason="it has no socket, and cannot be resized", detail=error)

    def _hear(self, sock: PacketSocket) -> bool:
        """Answer the next question of a connection; False if none has come. Closes it where nothing can follow.

        A question whose asker has gone is dropped: he has been told that nobody answers.
        """
        try:
            frame = sock.receive()
            if frame is None and not sock.closed:
                return False
            if frame is None or sock.hung_up:
                sock.close()
                return False
            reply: Lent | Refused = self._answer(unpack_question(frame))
        except (MessageError, VersionError, MisuseError) as error:
            counters.add("lender_refused", reason=type(error).__name__, detail=error)
            reply = Refused(type(error).__name__, str(error))
        if not sock.send(pack_message(reply)) or sock.closed or sock.blocked:  # it does not read what it asks for
            sock.close()
        return True
