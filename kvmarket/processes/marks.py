"""This process' mark in /dev/shm: it names the files that torch makes there for what we share.

A process that is killed leaves files named ``torch_<pid>_...``, and the number of a process proves nothing: where
/dev/shm is shared, processes of other PID namespaces have the same numbers. So a mark names files by device and inode,
and its process holds a record lock on it: whoever can take that lock knows that this very process is dead, whatever
namespace it was in. A fork does not inherit the lock.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmarket import counters
from kvmarket.processes.shared_file import Process

FOLDER = Path("/dev/shm")
PREFIX = "kvmarket-shares-"
LOCKED, FILE, CREATING = "locked", "file", "creating"  # first words of the lines of a mark

_lock = threading.Lock()
_noted: set[tuple[object, ...]] = set()  # files that our marks name
_marks: dict[Path, int] = {}  # descriptors of this process' marks, by folder; closing any of a mark ends its lock


def mark() -> None:
    """Say that this process shares memory, until it ends. Costs 100 us once."""
    with _lock:
        _own_mark()


@contextmanager
def creating(nbytes: int | None) -> Iterator[None]:
    """While torch creates a file of so many bytes (None: few) whose name nobody learns if we are killed meanwhile.

    Inodes of a tmpfs are numbered one after another, and that of the file will be just above the one noted here. Costs
    50 us.
    """
    with _lock:
        fd = _own_mark()
        end = 0 if fd is None else os.fstat(fd).st_size
        _append(fd, CREATING, *_newest_inode(), -1 if nbytes is None else nbytes)
        try:
            yield
        finally:
            if fd is not None:
                os.ftruncate(fd, end)


def created(name: str) -> None:
    """Note a file in `FOLDER` that is ours, and keeps its name for as long as this process lives."""
    with _lock, suppress(FileNotFoundError):
        status = (FOLDER / name).lstat()
        file = (status.st_dev, status.st_ino, name)
        if file not in _noted:
            _append(_own_mark(), FILE, *file)
            _noted.add(file)


def owner_of(path: Path) -> Process | None:
    """The process whose mark has this name; None where it is no mark's."""
    numbers = path.name.removeprefix(PREFIX).split("-")
    if not path.name.startswith(PREFIX) or len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    namespace, pid, start = map(int, numbers)
    return Process(pid, start, namespace)


def try_lock(fd: int) -> bool:
    """Take the record lock of a mark, until a descriptor of it is closed here; False where another process has it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or where files cannot be locked
        return False
    return True


def _own_mark() -> int | None:
    """A descriptor of the mark, which is made where it is missing; None without room for it, as torch will say too."""
    if FOLDER in _marks:
        return _marks[FOLDER]
    me = Process.current()
    path = FOLDER / f"{PREFIX}{me.namespace}-{me.pid}-{me.start}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        counters.add("mark_missing", reason="a kill would leave shared memory behind", detail=error)
        return None
    if try_lock(fd):  # a mark without that line proves nothing: its process may be about to lock it
        _append(fd, LOCKED)
    _marks[FOLDER] = fd
    atexit.register(_unmark, path, me.pid)
    return fd


def _newest_inode() -> tuple[int, ...]:
    """Device and number of an inode made in `FOLDER` just now; nothing where that is not possible."""
    try:
        fd = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return ()
    status = os.fstat(fd)
    os.close(fd)
    return status.st_dev, status.st_ino


def _append(fd: int | None, *words: object) -> None:
    """Add a line, in one write."""
    with suppress(OSError):  # no room: what is not noted stays when we are killed
        if fd is not None:
            os.write(fd, " ".join(map(str, words)).encode() + b"\n")


def _unmark(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork that ends says nothing of its parent
        path.unlink(missing_ok=True)
        if path.parent in _marks:
            os.close(_marks.pop(path.parent))


def _forked() -> None:
    """A fork shares nothing yet; and a lock that another thread held when it was made would never be free in it."""
    global _lock
    for fd in _marks.values():
        os.close(fd)
    _marks.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
