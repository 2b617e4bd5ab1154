"""The sockets at which the lenders of a market are asked for another size: beside the market's own, one each."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kvmarket.errors import RegistryError, WrongAddressError
from kvmarket.processes.shared_file import Process, pid_namespace
from kvmarket.registry.protocol.address import MAX_SOCKET_PATH, Address, identity
from kvmarket.registry.protocol.packets import PacketListener, dial

_BEFORE_NUMBERS = ".lend-"  # after the name of the market's socket: the PID namespace and the process number follow
_NEW = ".new"  # after the name of a socket that nobody listens at yet


class LenderSocket(NamedTuple):
    """The socket of a lender. `namespace` and `pid` say which one: numbers of other PID namespaces may repeat."""

    path: Path
    namespace: int
    pid: int

    @property
    def near(self) -> bool:
        """Whether the lender is of our PID namespace."""
        return self.namespace == pid_namespace()

    def owner_is(self, user: int) -> bool:
        """Whether the socket belongs to the user with this id, and is still there."""
        try:
            return self.owner == user
        except OSError:
            return False

    @property
    def owner(self) -> int:
        """The user id to whom the socket belongs. Raises OSError, FileNotFoundError if it has just been removed."""
        return self.path.lstat().st_uid


def socket_of(place: Address, process: Process) -> LenderSocket:
    """The socket of a lender of the market at `place`. Makes nothing. Raises WrongAddressError if it is too long."""
    path = place.socket.with_name(f"{place.socket.name}{_BEFORE_NUMBERS}{process.namespace}-{process.pid}")
    if (surplus := len(os.fsencode(path)) + len(_NEW) - MAX_SOCKET_PATH) > 0:
        raise WrongAddressError(
            f"{path} is too long for a Unix socket; give an address that is {surplus} bytes shorter"
        )
    return LenderSocket(path, process.namespace, process.pid)


def listen_at(lender: LenderSocket, most_bytes: int) -> PacketListener:
    """Make the socket of a lender (0600), in the place of an older one of this name; `most_bytes`: of a message.

    The socket gets its name when it listens: whoever finds that nobody listens there knows that the lender is dead.
    Raises OSError.
    """
    new = lender.path.with_name(lender.path.name + _NEW)
    listener = PacketListener(new, most_bytes)
    try:
        new.rename(lender.path)
    except OSError:
        listener.close()
        raise
    return listener


def remove_dead(place: Address) -> list[LenderSocket]:
    """Remove the sockets of dead lenders of the market at `place`; return those at which a lender listens, by number.

    Other users' sockets count as listened at where we may not connect. Costs a listing of the market's folder, and a
    connection to each.
    """
    living = [each for each in _sockets_of(place) if not _removed(each)]
    return sorted((each for each in living if each.path.suffix != _NEW), key=lambda each: (each.pid, each.path))


def _sockets_of(place: Address) -> list[LenderSocket]:
    """The sockets of lenders of a market, new ones too; none where its folder cannot be listed, or is missing."""
    before, after = re.escape(place.socket.name + _BEFORE_NUMBERS), re.escape(_NEW)
    name, found = re.compile(f"{before}([0-9]+)-([0-9]+)(?:{after})?"), []
    with suppress(OSError):
        for path in place.socket.parent.iterdir():
            with suppress(OSError):  # of this one: a link that we may not follow hides no others
                if (match := name.fullmatch(path.name)) and path.is_socket():
                    found.append(LenderSocket(path, int(match[1]), int(match[2])))
    return found


def _removed(lender: LenderSocket) -> bool:
    """Remove the socket if nobody listens at it; return whether there is none now."""
    try:
        known = identity(lender.path)
        dial(lender.path, "lender").close()
    except RegistryError:  # another user's, or no descriptor is left
        return False
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:  # it is stopped, and 128 processes have asked already; or it has gone
            return error.errno == errno.ENOENT
        with suppress(OSError):
            if identity(lender.path) == known:  # else it is a later lender's
                lender.path.unlink(missing_ok=True)
        return True
    return False
