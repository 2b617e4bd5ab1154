"""Send and receive descriptors with a message over a Unix socket (SCM_RIGHTS, see unix(7))."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

MOST_DESCRIPTORS = 128  # with one message; the kernel allows 253
ROOM = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)  # bytes of ancillary data to receive them


def beside(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data by which ``sendmsg`` sends these descriptors with a packet."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def came_beside(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in the ancillary data that ``recvmsg`` returned. The caller must close them."""
    came = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
    return came.tolist()


def copies(descriptors: Iterable[int]) -> tuple[int, ...]:
    """Duplicate descriptors; the caller closes the copies. If it raises OSError, no copy is left open."""
    made: list[int] = []
    try:
        for fd in descriptors:
            made.append(os.dup(fd))
    except OSError:
        close_all(made)
        raise
    return tuple(made)


def close_all(descriptors: Iterable[int]) -> None:
    """Close each of these descriptors."""
    for fd in descriptors:
        os.close(fd)
