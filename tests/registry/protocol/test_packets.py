"""Messages over a socket: whole, in order, never waited for, and an end that is noticed."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarket.errors import MessageError
from kvmarket.registry.protocol import packets as packets_module
from kvmarket.registry.protocol.packets import PACKET_BYTES, PacketListener, PacketSocket, dial
from tests.scarcity import descriptors


def ends() -> tuple[PacketSocket, PacketSocket]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return PacketSocket(one), PacketSocket(other)


def carry(one: PacketSocket, other: PacketSocket) -> bytes:
    """The next message from one to the other."""
    while (message := other.receive()) is None:
        assert not other.closed
        one.flush()
    return message


@pytest.mark.parametrize("size", [0, 1, PACKET_BYTES, PACKET_BYTES + 1, 5 * PACKET_BYTES + 7, 9 << 20])
def test_messages_of_any_length_come_whole_and_in_order(size):
    one, other = ends()
    messages = [b"first", os.urandom(size), b"last"]
    with one, other:
        assert all(one.send(message) for message in messages)
        assert [carry(one, other) for _ in messages] == messages
        assert other.receive() is None and not other.closed and not one.blocked


def test_whoever_does_not_read_makes_nobody_wait(monkeypatch):
    monkeypatch.setattr(packets_module, "MOST_BYTES", 50_000)
    one, other = ends()
    with one, other:
        sent = 0
        while one.send(b"%8d" % sent * 1000):
            sent += 1
        assert one.blocked and one.events & select.POLLOUT
        assert not one.send(b"x")
        assert 50_000 <= one.waiting < 60_000
        heard = [carry(one, other) for _ in range(sent)]
        assert heard == [b"%8d" % number * 1000 for number in range(sent)], "what was refused left nothing behind"
        assert one.send(b"again") and carry(one, other) == b"again" and not one.blocked
        assert one.waiting == 0


def test_what_was_sent_before_the_end_is_received():
    """Also where the other end had not read everything, which its socket then holds against us."""
    one, other = ends()
    with other:
        other.send(b"never read")
        one.send(b"farewell")
        one.close()
        assert not other.send(b"too late")
        assert other.receive() == b"farewell" and not other.closed
        assert other.receive() is None and other.closed
        assert other.receive() is None


class Failing:
    """A socket whose call number `at` of `method` fails with something that nobody expects."""

    def __init__(self, end: socket.socket, method: str, at: int) -> None:
        self._end, self._method, self._left = end, method, at

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.ENOBUFS, "no buffers")
        return getattr(self._end, name)


@pytest.mark.parametrize("later", [False, True])
def test_a_message_torn_by_the_kernel_ends_the_connection(later):
    """What follows must not be taken for the rest of it."""
    one, other = ends()
    with one, other:
        if later:
            while not one.blocked:
                one.send(bytes(3 * PACKET_BYTES))
            one.send(bytes(3 * PACKET_BYTES))
        one._socket = Failing(one._socket, "sendmsg", 1)
        if not later:
            assert not one.send(bytes(3 * PACKET_BYTES))
        for _ in range(100):
            assert other.receive() in (None, bytes(3 * PACKET_BYTES))
            one.flush()
        assert other.closed
        assert not one.send(b"next") and not one.blocked


def test_an_unforeseen_error_ends_the_connection():
    one, other = ends()
    with one, other:
        other._socket = Failing(other._socket, "recvmsg_into", 0)
        assert other.receive() is None and other.closed


def test_a_child_that_inherited_the_socket_does_not_keep_it_open():
    one, other = ends()
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.read(reads, 1)  # holds the sockets until told to go
        os._exit(0)
    with other:
        one.close()
        assert other.receive() is None and other.closed
    os.write(writes, b"x")
    os.waitpid(child, 0)
    os.close(reads)
    os.close(writes)


def test_a_message_beyond_the_limit_ends_the_connection(monkeypatch):
    monkeypatch.setattr(packets_module, "MAX_MESSAGE_BYTES", 3 * PACKET_BYTES)
    one, other = ends()
    with one, other:
        one.send(bytes(3 * PACKET_BYTES))
        assert carry(one, other) == bytes(3 * PACKET_BYTES)
        one.send(bytes(3 * PACKET_BYTES + 1))
        with pytest.raises(MessageError, match="longer than"):
            carry(one, other)
        assert other.closed and other.receive() is None


def test_a_message_of_parts_without_a_byte_ends_the_connection():
    """It would have no end: whoever reads would read for ever, and do nothing else."""
    one, other = ends()
    with one, other:
        one._socket.send(b"\1")
        with pytest.raises(MessageError, match="not of kvmarket"):
            other.receive()
        assert other.closed


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10))
def test_packets_of_strangers(packets):
    """Whatever comes: messages, or the error of the protocol."""
    stranger, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with stranger, PacketSocket(end) as sock:
        for packet in packets:
            stranger.send(packet)
        taken = 0
        try:
            while sock.receive() is not None:
                taken += 1
        except MessageError:
            assert sock.closed
        assert taken <= len(packets)


def test_a_door_lets_in_who_knocks(tmp_path):
    door = PacketListener(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert door.accept() is None
    with dial(tmp_path / "s") as outside:
        inside = door.accept()
        assert inside is not None and door.accept() is None
        outside.send(b"hello")
        assert inside.receive() == b"hello"
        inside.close()
        assert outside.receive() is None and outside.closed
    door.close()
    with pytest.raises(ConnectionRefusedError):
        dial(tmp_path / "s")


def test_waiting_ends_with_a_whole_message_the_time_or_the_end():
    one, other = ends()
    long = os.urandom(40 * PACKET_BYTES)
    thread = threading.Thread(target=lambda: (time.sleep(0.05), one.send(long), one.wait(5.0), one.close()))
    with other:
        start = time.monotonic()
        assert other.wait(0.01) is None and 0.01 <= time.monotonic() - start < 1
        thread.start()
        assert other.wait(5.0) == long
        other.send(b"thanks")
        start = time.monotonic()
        assert other.wait(5.0) is None and other.closed and time.monotonic() - start < 4
        thread.join()


def test_descriptors_travel_with_a_message_and_are_the_receivers(tmp_path):
    one, other = ends()
    with (tmp_path / "file").open("w+") as file, one, other:
        before = descriptors()
        assert one.send(b"with", [file.fileno()] * 3) and one.send(b"without")
        assert other.receive() == b"with"
        came = other.take_descriptors()
        assert len(came) == 3 and other.take_descriptors() == []
        assert all(os.fstat(fd).st_ino == os.fstat(file.fileno()).st_ino for fd in came)
        assert other.receive() == b"without" and other.take_descriptors() == []
        assert descriptors() == before + 3
        for fd in came:
            os.close(fd)


def test_descriptors_that_nobody_takes_are_closed(tmp_path):
    one, other = ends()
    with (tmp_path / "file").open("w+") as file:
        before = descriptors()
        for _ in range(2):
            assert one.send(b"with", [file.fileno()] * 3)
        assert other.receive() == b"with" and descriptors() == before + 3
        assert other.receive() == b"with" and descriptors() == before + 3
        other.close()
        one.close()
        assert descriptors() == before - 2


def test_descriptors_wait_with_their_message_and_go_with_the_connection(tmp_path):
    one, other = ends()
    path = tmp_path / "file"
    with other:
        with path.open("w+") as file:
            before = descriptors()
            while not one.blocked:
                one.send(bytes(60_000))
            assert one.send(b"with", [file.fileno()])
            assert descriptors() == before + 1, "the caller may close his own"
        while (message := carry(one, other)) != b"with":
            assert message == bytes(60_000)
        (came,) = other.take_descriptors()
        assert os.fstat(came).st_ino == path.stat().st_ino
        os.close(came)
        assert descriptors() == before - 1
        while not one.blocked:
            one.send(bytes(60_000))
        with path.open() as file:
            assert one.send(b"with", [file.fileno()])
        one.close()
    assert descriptors() == before - 3
