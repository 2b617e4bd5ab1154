"""Descriptors that travel beside a message over a Unix socket, as unix(7) has it (SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

MOST_DESCRIPTORS = 128  # with one message; the kernel allows 253
ROOM = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)  # bytes for them at the receiver


def beside(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """What ``sendmsg`` is to send beside a packet."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def came_beside(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what ``recvmsg`` found beside a packet: the caller's from now on."""
    came = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
    return came.tolist()


def copies(descriptors: Iterable[int]) -> tuple[int, ...]:
    """Copies of them. Raises OSError, and leaves none open then."""
    made: list[int] = []
    try:
        for fd in descriptors:
            made.append(os.dup(fd))
    except OSError:
        close_all(made)
        raise
    return tuple(made)


def close_all(descriptors: Iterable[int]) -> None:
    """Close each."""
    for fd in descriptors:
        os.close(fd)
