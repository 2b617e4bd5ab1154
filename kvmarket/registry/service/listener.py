"""A service's hold on its address: the lock that says it lives, and the socket that engines find it by.

Both are files, and files are removed: by cleaners of /tmp, at logout, by hand. So the service looks for them again and
again, and makes those that are missing. Where another service has been founded meanwhile, that one has the address.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
import weakref

from kvmarket import counters
from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address, identity
from kvmarket.registry.protocol.packets import PacketListener, PacketSocket
from kvmarket.support.advice import explained

LOOK_SECONDS = 0.2
_TRIES, _TRY_SECONDS = 5, 0.02  # somebody may just be looking whether the lock is held


class Listener:
    """The lock and the listening socket of one service. Not thread-safe."""

    def __init__(self, address: Address) -> None:
        """Take the lock and make the socket. Raises AddressError if another service has them, or they cannot be."""
        self._address = address
        self._door: PacketListener | None = None
        self._socket: tuple[int, int] | None = None  # identity of its file
        self._lock = -1
        self._directory_made = False  # again, and not by who made it first, and may have removed it
        self._look_at = 0.0
        address.prepare()
        try:
            self._poll = select.epoll()  # whoever polls us need not know when the socket is another one
        except OSError as error:
            raise AddressError(f"{address} cannot be listened at {explained(error)}") from error
        self._lock = _take_lock(address)
        try:
            self._open()
        except OSError as error:
            self.close()
            raise AddressError(f"the socket {address} cannot be made {explained(error)}") from error
        _listeners.add(self)

    def fileno(self) -> int:
        """Readable when somebody wants to come in."""
        return self._poll.fileno()

    def accept(self) -> PacketSocket | None:
        """As `PacketListener.accept`."""
        return None if self._door is None else self._door.accept()

    def keep(self, needed: bool = True) -> bool:
        """Make lock and socket again where they are missing; False where another service has the address by now.

        False too where they are missing and the service is not `needed`: whoever comes starts another one. Looks every
        `LOOK_SECONDS`, which costs 10 us. What keeps them from being made is counted, and tried again.
        """
        now = time.monotonic()
        if now < self._look_at:
            return True
        self._look_at = now + LOOK_SECONDS
        try:
            if not self._address.is_locked_by(self._lock):
                return needed and self._lock_again()
            found = identity(self._address.socket)
            if found is None or found != self._socket:
                self._open()
                counters.add("socket_made_again", reason="the socket of the service had been removed or replaced")
        except (AddressError, OSError) as error:
            counters.add("address_lost", reason="nobody can join", detail=error)
        return True

    def close(self) -> None:
        """Remove socket, lock and an empty log where the address is still ours, and let go of it."""
        place = self._address
        with contextlib.suppress(AddressError, OSError):  # whoever comes next takes over what is left
            if place.is_locked_by(self._lock):
                if identity(place.socket) == self._socket:
                    place.socket.unlink(missing_ok=True)
                if place.log.exists() and not place.log.stat().st_size:
                    place.log.unlink(missing_ok=True)
                place.lock.unlink(missing_ok=True)
                if self._directory_made:
                    place.socket.parent.rmdir()  # if it is empty
        self._let_go()

    def _lock_again(self) -> bool:
        """Make the lock again, if nobody else has; False where another service has. Raises AddressError."""
        self._directory_made = self._directory_made or not self._address.socket.parent.exists()
        self._address.prepare()
        lock = self._address.take_lock()
        if lock is None:
            return not self._address.service_lives()  # else somebody is just looking whether one does
        os.close(self._lock)
        self._lock = lock
        self._look_at = 0.0  # for the socket
        counters.add("lock_made_again", reason="the lock of the service had been removed")
        return True

    def _open(self) -> None:
        """Make the socket, in place of the one before. Raises OSError."""
        door = PacketListener(self._address.socket)
        try:
            self._poll.register(door, select.EPOLLIN)
            self._socket = identity(self._address.socket)
        except OSError:
            door.close()
            raise
        if self._door is not None:
            self._poll.unregister(self._door)
            self._door.close()
        self._door = door

    def _let_go(self) -> None:
        """Close the descriptors; the lock last."""
        if self._door is not None:
            self._door.close()
        self._poll.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def _forked() -> None:
    """A fork of the process of a service is none: it must not hold the lock when that process is killed."""
    for listener in list(_listeners):
        listener._let_go()


os.register_at_fork(after_in_child=_forked)


def _take_lock(address: Address) -> int:
    """The lock of `address`. Raises AddressError where a service holds it."""
    for _ in range(_TRIES):
        lock = address.take_lock()
        if lock is not None:
            return lock
        time.sleep(_TRY_SECONDS)
    raise AddressError(f"a service already holds {address}; use it, or give another address")
