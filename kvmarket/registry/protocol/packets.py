"""Messages over a Unix packet socket (SOCK_SEQPACKET): the kernel keeps packets whole and in order.

No messaging library is used: its thread would have to get a CPU before a message arrives, and offers between busy
processes were seen a sixth later.

A message longer than a packet travels as several packets. The first byte of each packet says whether its message
continues. Descriptors may travel with a message of one packet, for processes that cannot open memory by process number.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from kvmarket.errors import AddressError, MessageError, VersionError
from kvmarket.registry.protocol.descriptors import ROOM, beside, came_beside, close_all, copies
from kvmarket.registry.protocol.messages import MAX_MESSAGE_BYTES, PROTOCOL
from kvmarket.support.advice import explained

PACKET_BYTES = 1 << 16
BUFFER_BYTES = 4 * PACKET_BYTES  # of the kernel's send buffer
FLUSH_PACKETS = 16  # sent by one `flush`: about 0.3 ms
MOST_BYTES = 80 << 20  # unsent bytes that are kept in this process: the longest message, and more
BACKLOG = 128
_LAST, _MORE = b"\0", b"\1"
_UCRED = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid
JUST_NOT_NOW = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)  # the service starts or ends, or its backlog is full


class _Packet(NamedTuple):
    """A part of a message, and the descriptors that travel with it."""

    kind: bytes
    part: bytes | memoryview
    descriptors: tuple[int, ...] = ()


class PacketSocket:
    """One end of a connection. Only `wait` waits. Not thread-safe."""

    def __init__(self, end: socket.socket, most_bytes: int | None = None) -> None:
        """Take ownership of a connected socket. `most_bytes`: of a message from it, else MAX_MESSAGE_BYTES."""
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._socket = end
        self._most_bytes = MAX_MESSAGE_BYTES if most_bytes is None else most_bytes
        self._unsent: deque[_Packet] = deque()
        self.waiting = 0  # unsent bytes
        self._room = memoryview(bytearray(1 + PACKET_BYTES))
        self._begun = bytearray()  # the packets so far of a message that continues
        self._came: list[int] = []  # descriptors that came with the message received last
        self.closed = False  # whether the other end has closed and all it sent was received, or it broke the protocol

    def __enter__(self) -> PacketSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor to poll: readable when a message or the other end's close has come, writable for `flush`."""
        return self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """Whether there are unsent packets: call `flush` when the descriptor is writable."""
        return bool(self._unsent)

    @property
    def hung_up(self) -> bool:
        """Whether the other end is closed; messages that it sent before may still be there."""
        poll = select.poll()
        poll.register(self, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    @property
    def events(self) -> int:
        """The events to poll the descriptor for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send a message, and keep the packets that the kernel does not take. False if it was not taken at all.

        That is so if `MOST_BYTES` are unsent already, or the other end is gone. Earlier unsent packets go first;
        `flush` sends them. `descriptors`, at most `MOST_DESCRIPTORS`, travel with a message of one packet; they stay
        the caller's. The other end may receive fewer, if it has no descriptors left, say.
        """
        if self.waiting >= MOST_BYTES:
            return False
        size = len(message)
        if size <= PACKET_BYTES:
            packets = [_Packet(_LAST, message, tuple(descriptors))]
        else:
            view = memoryview(message)
            packets = [
                _Packet(_MORE if at + PACKET_BYTES < size else _LAST, view[at : at + PACKET_BYTES])
                for at in range(0, size, PACKET_BYTES)
            ]
        try:
            while packets and not self._unsent and self._put(packets[0]):
                del packets[0]
            self._unsent.extend(packet._replace(descriptors=copies(packet.descriptors)) for packet in packets)
        except OSError:
            self._break()
            return False
        self.waiting += sum(len(packet.part) for packet in packets)
        return True

    def flush(self) -> bool:
        """Send unsent packets, at most `FLUSH_PACKETS`; return whether none is left."""
        try:
            for _ in range(FLUSH_PACKETS):
                if not self._unsent or not self._put(self._unsent[0]):
                    break
                packet = self._unsent.popleft()
                self.waiting -= len(packet.part)
                close_all(packet.descriptors)
        except OSError:
            self._break()
        return not self._unsent

    def receive(self) -> bytes | None:
        """The next message; None if no whole one has come. Closes descriptors of the last message that were not taken.

        Raises MessageError for packets that no `PacketSocket` sends; the connection then counts as closed.
        """
        while not self.closed:
            close_all(self.take_descriptors())
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into([self._room], ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return None
            except ConnectionResetError:  # the other end closed without reading all; its last messages still come
                continue
            except OSError:
                size, ancillary = 0, []
            if ancillary:
                self._came = came_beside(ancillary)
            if not size:
                self.closed = True
                break
            kind, part = self._room[:1], self._room[1:size]
            empty = kind == _MORE and not part  # of which nobody's bound would ever be reached
            if kind not in (_LAST, _MORE) or empty or len(self._begun) + len(part) > self._most_bytes:
                self.closed = True
                raise MessageError(f"a message longer than {self._most_bytes} bytes, or not of kvmarket")
            if kind == _LAST and not self._begun:
                return bytes(part)
            self._begun += part
            if kind == _LAST:
                message = bytes(self._begun)
                self._begun.clear()
                return message
        return None

    def take_descriptors(self) -> list[int]:
        """Take the descriptors that came with the message received last. The caller must close them."""
        came, self._came = self._came, []
        return came

    def wait(self, seconds: float) -> bytes | None:
        """Wait for the next message; None after `seconds`, or if the other end closes. Raises as `receive`."""
        poll, end = select.poll(), time.monotonic() + seconds
        while (message := self.receive()) is None and not self.closed and (left := end - time.monotonic()) > 0:
            poll.register(self, self.events)
            poll.poll(math.ceil(1000 * left))
            self.flush()
        return message

    def close(self) -> None:
        """Close the connection. The other end can still receive packets that the kernel has. May be called twice."""
        self._break()  # ends it even if a child process has inherited the socket
        close_all(self.take_descriptors())
        self._socket.close()

    def _break(self) -> None:
        """Shut the connection down for both ends and drop unsent packets; a message may be torn."""
        for packet in self._unsent:
            close_all(packet.descriptors)
        self._unsent.clear()
        self.waiting = 0
        with contextlib.suppress(OSError):  # the other end may have gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def _put(self, packet: _Packet) -> bool:
        """Give one packet to the kernel; return whether it took it. Raises OSError if the other end is gone."""
        parts = (packet.kind, packet.part)
        try:
            try:
                self._socket.sendmsg(parts, beside(packet.descriptors) if packet.descriptors else ())
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                self._socket.sendmsg(parts)  # without the descriptors: the receiver asks for them again
        except BlockingIOError:
            return False
        return True


class PacketListener:
    """A listening socket that accepts only processes of this user."""

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        """Make the socket (0600). `most_bytes`: as of the `PacketSocket`s that `accept` returns. Raises OSError."""
        self._most_bytes = most_bytes
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        mask = os.umask(0o177)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(os.fspath(path))
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        finally:
            os.umask(mask)

    def fileno(self) -> int:
        """The descriptor to poll: readable when a process wants to connect."""
        return self._socket.fileno()

    def accept(self) -> PacketSocket | None:
        """Accept the next connection; None if there is none. Raises OSError if descriptors ran out."""
        while True:
            try:
                end, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return None
            if _user_of(end) == os.geteuid():
                return PacketSocket(end, self._most_bytes)
            end.close()

    def close(self) -> None:
        """Close the listening socket; connections stay."""
        self._socket.close()


def dial(path: Path, who: str = "service") -> PacketSocket:
    """Connect to the service of this user that listens at `path`, or to another process that messages call `who`.

    Raises OSError with one of `JUST_NOT_NOW` if it may work a moment later; VersionError if it listens by another kind
    of socket; AddressError if it cannot be reached or is another user's. Nothing is sent to another user's service.
    """
    try:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise AddressError(f"no socket to reach {path} with {explained(error)}") from error
    try:
        end.setblocking(False)
        end.connect(os.fspath(path))
        uid = _user_of(end)
    except OSError as error:
        end.close()
        if error.errno in JUST_NOT_NOW:
            raise
        if error.errno == errno.EPROTOTYPE:
            raise VersionError(
                f"the {who} at {path} does not speak {PROTOCOL.decode().strip()}; "
                "run one version of kvmarket on the node, or give each its own address"
            ) from error
        raise AddressError(f"the {who} at {path} cannot be reached {explained(error)}") from error
    if uid != os.geteuid():
        end.close()
        raise AddressError(f"the {who} at {path} is another user's (uid {uid}); give an address of your own")
    return PacketSocket(end)


def _user_of(end: socket.socket) -> int:
    """The effective user id of the process at the other end, from when it connected or began to listen."""
    _, uid, _ = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
