"""The address of a market: a Unix socket in a directory of the user, and a lock file that the service holds."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from kvmarket.errors import AddressError, WrongAddressError
from kvmarket.support.advice import explained

MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its final zero
_WRONG = (errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # what lies there has to be changed
_HOME = Path("/tmp")  # holds the directory of default addresses and names: the same in every environment of a user


class Address:
    """The files of one market.

    `socket`; `lock`, which the service holds while it lives; `log` of the service.
    """

    def __init__(self, address: str | os.PathLike[str] | None = None) -> None:
        """Parse `address`: a socket path, ``ipc://`` and a path, or a name without slashes.

        A name is a socket in ``/tmp/kvmarket-<uid>``. None means the value of KVMARKET_ADDRESS or, if that is unset or
        empty, the name ``market``. ``~`` means a home directory. A relative path counts from the current directory, so
        it is a different one elsewhere. No other variable matters: engines of one user find each other, wherever they
        were started.

        Makes nothing, not even the directory. Raises AddressError if others own the directory, or if it is the default
        one and others can enter it; WrongAddressError if no market can ever have this address: no path, a path too long
        for a socket, a directory that the user cannot write to, or other files with these names.
        """
        path, self._private = _parsed(address)
        self.socket = path / "market" if os.path.isdir(path) else path  # noqa: PTH112 - Path.is_dir raises
        if len(os.fsencode(self.socket)) + len(".lock") > MAX_SOCKET_PATH:
            raise WrongAddressError(
                f"{self.socket} is too long for a Unix socket ({MAX_SOCKET_PATH - 5} bytes); give a shorter address"
            )
        self.lock = self.socket.with_name(self.socket.name + ".lock")
        self.log = self.socket.with_name(self.socket.name + ".log")
        self._check()

    def __str__(self) -> str:
        """The socket's path."""
        return str(self.socket)

    def prepare(self) -> None:
        """Make the directory (0700) where it is missing. Raises AddressError where it cannot be, or is not ours."""
        directory = self.socket.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AddressError(f"the directory {directory} cannot be made {explained(error)}") from error
        self._check()

    def _check(self) -> None:
        """Refuse a directory that is not ours, and what lies in it that is no market of ours; there may be none."""
        _check_directory(self.socket.parent, strict=self._private)
        self._check_files()

    def _check_files(self) -> None:
        """Raise AddressError if `socket` or `lock` exists and is not one of a market of this user."""
        for path, ours in ((self.socket, stat.S_ISSOCK), (self.lock, stat.S_ISREG)):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _cannot(f"{path} cannot be made", error) from error
            if not ours(status.st_mode) or (path == self.lock and status.st_size):
                raise WrongAddressError(f"{path} exists and is not a market's; give another address")
            if status.st_uid != os.geteuid():
                raise AddressError(f"{path} belongs to another user (uid {status.st_uid}); give another address")

    def take_lock(self) -> int | None:
        """Take the service's lock. Returns a descriptor to keep open, or None if another process holds the lock.

        Raises AddressError if the lock file cannot be made.
        """
        while True:
            fd, taken = self._open_lock(os.O_CREAT), False
            try:
                if not self._flock(fd, fcntl.LOCK_EX):
                    return None
                taken = self.is_locked_by(fd)  # else the file was removed meanwhile: there may be a new one
                if taken:
                    return fd
            finally:
                if not taken:
                    os.close(fd)

    def is_locked_by(self, lock: int) -> bool:
        """Whether the file of a descriptor from `take_lock` is still the one at `self.lock`. Raises AddressError."""
        try:
            return identity(self.lock) == identity(lock)
        except OSError as error:
            raise AddressError(f"{self.lock} cannot be looked at {explained(error)}") from error

    def service_lives(self) -> bool:
        """Whether a service holds the lock. Makes no files. Raises AddressError if the files are not the user's own."""
        self._check_files()
        try:
            fd = self._open_lock(0)
        except FileNotFoundError:
            return False
        try:
            if not self._flock(fd, fcntl.LOCK_SH):
                return True
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough if a fork has inherited the descriptor meanwhile
            return False
        finally:
            os.close(fd)

    def _open_lock(self, flags: int) -> int:
        """Open the lock file. Raises AddressError, or FileNotFoundError if it is missing and `flags` is 0."""
        try:
            return os.open(self.lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not flags:
                raise
            raise AddressError(f"{self.lock} cannot be opened {explained(error)}") from error

    def _flock(self, fd: int, how: int) -> bool:
        """Lock a file without waiting; False if another process holds the lock. Raises AddressError."""
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise AddressError(f"{self.lock} cannot be locked {explained(error)}") from error
        return True


def default_directory() -> Path:
    """The directory of this user's markets whose address is a name. Does not make it."""
    return _HOME / f"kvmarket-{os.geteuid()}"


def identity(file: Path | int) -> tuple[int, int] | None:
    """Device and inode of a file, which differ from those of a later file of the same name; None if there is none."""
    try:
        status = os.fstat(file) if isinstance(file, int) else file.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _parsed(address: str | os.PathLike[str] | None) -> tuple[Path, bool]:
    """The path that an address names, and whether it is in the user's own directory of default addresses."""
    if address is None:
        variable = os.environ.get("KVMARKET_ADDRESS", "")
        address = variable if variable.strip() else "market"
    text = os.fspath(address).removeprefix("ipc://")
    if not text or "\0" in text or "://" in text:
        raise WrongAddressError(f"address {address!r} names no Unix socket; give a path, or a name without slashes")
    if text != text.strip():
        raise WrongAddressError(f"address {address!r} begins or ends with white space; give it without")
    private = "/" not in text and text not in (".", "..") and not text.startswith("~")
    try:
        os.fsencode(text)
        path = (default_directory() / text if private else Path(text).expanduser()).absolute()
    except (UnicodeEncodeError, RuntimeError, OSError) as error:  # no file name; unknown user; no current directory
        raise WrongAddressError(f"address {address!r} names no path ({error}); give an absolute path") from error
    return path, private


def _cannot(what: str, error: OSError) -> AddressError:
    """The error to raise where the system says `error`: a WrongAddressError where no waiting helps."""
    return (WrongAddressError if error.errno in _WRONG else AddressError)(f"{what} {explained(error)}")


def _check_directory(path: Path, *, strict: bool) -> None:
    """Refuse a directory that is not the user's own; `strict` also demands that nobody else can enter it."""
    try:
        status = path.lstat() if strict else path.stat()
    except FileNotFoundError:
        return  # whoever serves makes it
    except OSError as error:
        raise _cannot(f"the directory {path} cannot be looked at", error) from error
    if strict and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid()):
        raise AddressError(
            f"{path} is a link or belongs to another user (uid {status.st_uid}); "
            "have it removed, or set KVMARKET_ADDRESS to a path in a directory of your own"
        )
    if strict and stat.S_IMODE(status.st_mode) & 0o077:
        raise AddressError(f"{path} must belong to you with mode 0700; chmod 700 it, or give another address")
    if not stat.S_ISDIR(status.st_mode):
        raise WrongAddressError(f"{path} is no directory; give another address")
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise WrongAddressError(f"you cannot write to {path}; give an address in a directory of your own")
