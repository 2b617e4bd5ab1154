"""This process' mark: a file in /dev/shm that lists the files which torch made there for memory that we share.

A killed process leaves files named ``torch_<pid>_...``. The number does not say whose they are: where /dev/shm is
shared, processes of other PID namespaces have the same numbers. So a mark names files by device and inode, and its
process holds a record lock on the mark. If the mark says `locked` and another process can take the lock, the owner is
dead, whatever its namespace: `leftovers.sweep` then removes the listed files. A fork does not inherit the lock.

The lines of a mark: `locked`; `file`, device, inode, name; `creating`, device and inode of the newest file (missing if
unknown), bytes (-1: few).
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
_noted: set[tuple[object, ...]] = set()  # (device, inode, name) of the files that our marks name
_marks: dict[Path, int] = {}  # descriptors of this process' marks, by folder; closing any descriptor ends the lock


def mark() -> None:
    """Make the mark of this process, which stays until the process ends. Costs 100 us on the first call."""
    with _lock:
        _own_mark()


@contextmanager
def creating(nbytes: int | None) -> Iterator[None]:
    """A context in which torch creates a file of `nbytes` bytes (None: a small one) whose name is not yet known.

    If this process is killed inside, `leftovers.sweep` can usually find the file: inodes of a tmpfs are numbered one
    after another, and the file has one of the next 64 numbers after the one that is noted here. Do not call `mark`,
    `created` or `creating` inside: they would wait for ever. Costs 50 us.
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
    """Note in the mark a file in `FOLDER` that keeps its name while this process lives; ignore a missing file."""
    with _lock, suppress(FileNotFoundError):
        status = (FOLDER / name).lstat()
        file = (status.st_dev, status.st_ino, name)
        if file not in _noted:
            _append(_own_mark(), FILE, *file)
            _noted.add(file)


def owner_of(path: Path) -> Process | None:
    """The process whose mark is at `path`; None where that is not the name of a mark."""
    numbers = path.name.removeprefix(PREFIX).split("-")
    if not path.name.startswith(PREFIX) or len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    namespace, pid, start = map(int, numbers)
    return Process(pid, start, namespace)


def try_lock(fd: int) -> bool:
    """Take the record lock of a mark; False if another process has it, or the file cannot be locked.

    If this process closes any descriptor of the file, the lock ends.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _own_mark() -> int | None:
    """A descriptor of this process' mark, made on the first call; None, which is counted, if it cannot be made."""
    if FOLDER in _marks:
        return _marks[FOLDER]
    me = Process.current()
    path = FOLDER / f"{PREFIX}{me.namespace}-{me.pid}-{me.start}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        counters.add("mark_missing", reason="a kill would leave shared memory behind", detail=error)
        return None
    if try_lock(fd):  # without this line others know nothing: the process may be about to lock its mark
        _append(fd, LOCKED)
    _marks[FOLDER] = fd
    atexit.register(_unmark, path, me.pid)
    return fd


def _newest_inode() -> tuple[int, ...]:
    """Device and number of a new inode in `FOLDER`, so of the newest one; empty where none can be made."""
    try:
        fd = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return ()
    status = os.fstat(fd)
    os.close(fd)
    return status.st_dev, status.st_ino


def _append(fd: int | None, *words: object) -> None:
    """Add a line to a mark, in one write."""
    with suppress(OSError):  # no room: a file that is not noted stays behind if we are killed
        if fd is not None:
            os.write(fd, " ".join(map(str, words)).encode() + b"\n")


def _unmark(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork that ends must not remove the mark of its parent
        path.unlink(missing_ok=True)
        if path.parent in _marks:
            os.close(_marks.pop(path.parent))


def _forked() -> None:
    """Forget the parent's marks in a fork, and make a new lock: another thread may have held the old one."""
    global _lock
    for fd in _marks.values():
        os.close(fd)
    _marks.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
