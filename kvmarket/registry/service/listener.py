"""The lock and the listening socket by which a service holds its address.

Both are files, and files get removed: by cleaners of /tmp, at logout, by hand. So the service checks them again and
again, and makes missing ones anew. If another service has taken the address meanwhile, this service gives way.
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
_TRIES, _TRY_SECONDS = 5, 0.02  # a process that checks whether a service lives takes the lock for a moment


class Listener:
    """The lock and the listening socket of one service. Not thread-safe."""

    def __init__(self, address: Address) -> None:
        """Take the lock and make the socket.

        Raises AddressError if another service has the lock, or if the files cannot be made.
        """
        self._address = address
        self._listener: PacketListener | None = None
        self._socket: tuple[int, int] | None = None  # identity of its file
        self._lock = -1
        self._directory_made = False  # whether we made the directory anew, so that we must remove it
        self._look_at = 0.0
        address.prepare()
        try:
            self._poll = select.epoll()  # a descriptor that stays the same when the socket is made anew
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
        """The descriptor to poll: readable when a process wants to connect. Stays the same for good."""
        return self._poll.fileno()

    def accept(self) -> PacketSocket | None:
        """As `PacketListener.accept`."""
        return None if self._listener is None else self._listener.accept()

    def keep(self, needed: bool = True) -> bool:
        """Make lock and socket anew if they are missing, or if the socket was replaced; False if the service must end.

        It must end if another service has taken the address, or if the lock is missing and the service is not `needed`:
        the next engine starts another one. `needed`: whether the service has members, or never ends by idling. Checks
        every `LOOK_SECONDS`, which costs 10 us. A failure is counted, and tried again at the next check.
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
        """Remove socket, lock and an empty log if the address is still ours, and close all descriptors.

        Also removes the directory if we made it anew and it is empty.
        """
        place = self._address
        with contextlib.suppress(AddressError, OSError):  # the next service uses the files that are left
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
        """Make the lock anew; False if another service has made it. Raises AddressError."""
        self._directory_made = self._directory_made or not self._address.socket.parent.exists()
        self._address.prepare()
        lock = self._address.take_lock()
        if lock is None:
            return not self._address.service_lives()  # if none lives, a process was only checking the lock
        os.close(self._lock)
        self._lock = lock
        self._look_at = 0.0  # for the socket
        counters.add("lock_made_again", reason="the lock of the service had been removed")
        return True

    def _open(self) -> None:
        """Make the socket, and replace the one before. Raises OSError."""
        listener = PacketListener(self._address.socket)
        try:
            self._poll.register(listener, select.EPOLLIN)
            self._socket = identity(self._address.socket)
        except OSError:
            listener.close()
            raise
        if self._listener is not None:
            self._poll.unregister(self._listener)
            self._listener.close()
        self._listener = listener

    def _let_go(self) -> None:
        """Close the descriptors; the lock last."""
        if self._listener is not None:
            self._listener.close()
        self._poll.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def _forked() -> None:
    """Close the descriptors in a fork: it must not hold the lock when the service's process is killed."""
    for listener in list(_listeners):
        listener._let_go()


os.register_at_fork(after_in_child=_forked)


def _take_lock(address: Address) -> int:
    """Take the lock of `address`. Raises AddressError if a service holds it."""
    for _ in range(_TRIES):
        lock = address.take_lock()
        if lock is not None:
            return lock
        time.sleep(_TRY_SECONDS)
    raise AddressError(f"a service already holds {address}; use it, or give another address")
