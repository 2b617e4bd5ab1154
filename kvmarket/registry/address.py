"""Where a market lives.

A Unix socket in a directory that only the user can enter, and a lock that its service holds.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from kvmarket.errors import AddressError

_MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its final zero


class Address:
    """The files of one market.

    `socket`, `lock` beside it (held by the service while it lives), `log` of the service.
    """

    def __init__(self, address: str | os.PathLike[str] | None = None) -> None:
        """`address`.

        A socket path, ``ipc://`` and a path, a bare name in the user's runtime directory, or None for the default.

        Makes the directory (0700) where it is missing. Raises AddressError, with what to do, if it is not the user's
        own, if it is the default one and others can enter it, or if the path is too long for a socket.
        """
        text = os.environ.get("KVMARKET_ADDRESS", "market") if address is None else os.fspath(address)
        text = text.removeprefix("ipc://")
        if not text or "\0" in text or "://" in text:
            raise AddressError(f"address {address!r} names no Unix socket; give a path, or a name without slashes")
        own = "/" not in text
        self.socket = (_runtime_directory() / text if own else Path(text)).absolute()
        if self.socket.is_dir():
            self.socket = self.socket / "market"
        if len(os.fsencode(self.socket)) + len(".lock") > _MAX_SOCKET_PATH:
            raise AddressError(
                f"{self.socket} is too long for a Unix socket ({_MAX_SOCKET_PATH - 5} bytes); give a shorter address"
            )
        self.lock = self.socket.with_name(self.socket.name + ".lock")
        self.log = self.socket.with_name(self.socket.name + ".log")
        _private_directory(self.socket.parent, strict=own)
        self._check_files()

    def __str__(self) -> str:
        """The socket's path."""
        return str(self.socket)

    def _check_files(self) -> None:
        """Refuse a path where something else than a market of this user lies already."""
        for path, ours in ((self.socket, stat.S_ISSOCK), (self.lock, stat.S_ISREG)):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise AddressError(f"{path} cannot be made ({error.strerror}); give another address") from error
            if not ours(status.st_mode) or (path == self.lock and status.st_size):
                raise AddressError(f"{path} exists and is not a market's; give another address")
            if status.st_uid != os.getuid():
                raise AddressError(f"{path} belongs to another user (uid {status.st_uid}); give another address")

    def take_lock(self) -> int | None:
        """Take the service's lock: a descriptor to keep open, or None if a service lives.

        Raises AddressError if it cannot be made.
        """
        while True:
            try:
                fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise AddressError(
                    f"{self.lock} cannot be made ({error.strerror}); give an address you can write to"
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            if self.lock.exists() and self.lock.stat().st_ino == os.fstat(fd).st_ino:
                return fd
            os.close(fd)

    def service_lives(self) -> bool:
        """Whether some process holds the lock. Leaves nothing behind.

        Raises AddressError if it is not the user's own.
        """
        self._check_files()
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise AddressError(f"{self.lock} cannot be opened ({error.strerror}); it must belong to you") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)


def _runtime_directory() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "kvmarket" if base and Path(base).is_dir() else Path(f"/tmp/kvmarket-{os.getuid()}")


def _private_directory(path: Path, *, strict: bool) -> None:
    """Make `path` (0700) or check that it is the user's own; `strict` also demands that nobody else can enter it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise AddressError(
            f"the directory {path} cannot be made ({error.strerror}); give an address you can write to"
        ) from error
    if strict and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077):
        raise AddressError(f"{path} must belong to you with mode 0700; remove it, or give another address")
    if not os.access(path, os.W_OK | os.X_OK):
        raise AddressError(f"you cannot write to {path}; give an address in a directory of your own")
