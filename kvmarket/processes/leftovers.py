"""Shared memory with a name that a killed process left in /dev/shm, where nobody else knows of it.

torch names two kinds of files ``torch_<pid>_...``: a storage that is moved into shared memory has a name while its
memory is allocated, and the counters behind CUDA IPC handles as long as their process lives. A process that is killed
leaves them. Whoever finds the mark of a dead process (see `marks`) removes the files that it names, and nothing else:
no file of a living process, of whatever namespace, of another user, or of a process that has no mark.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from kvmarket.processes import marks
from kvmarket.processes.marks import mark
from kvmarket.processes.shared_file import Process, start_time

__all__ = ["mark", "sweep"]

_NEXT_INODES = 64  # one of these has the file that was being created: other processes create files too
_FEW_BYTES = 1 << 20
_MOST_BYTES = 1 << 20  # of a mark


def sweep() -> None:
    """Remove what dead processes of this user left. Costs a listing of /dev/shm, and 50 us for each mark."""
    me = Process.current()
    for path in _marks():
        owner = marks.owner_of(path)
        if owner is not None and owner != me:  # to open and close our own would end its lock
            with suppress(OSError):  # somebody else has just removed it, say
                _sweep_for(owner, path, near=owner.namespace == me.namespace)


def _sweep_for(owner: Process, path: Path, *, near: bool) -> None:
    """Remove what `owner` left, and its mark, where it is dead beyond doubt; `near`: of our PID namespace.

    Raises OSError.
    """
    if owner.alive() if near else not path.lstat().st_size:  # an older version's, or its process is about to lock it
        return
    fd = _lock_of_the_dead(path)
    if fd is None:
        return
    try:
        lines = [line.split(" ") for line in os.read(fd, _MOST_BYTES).decode(errors="replace").splitlines()]
        if [marks.LOCKED] in lines:
            files = [file for line in lines if (file := _named(line)) is not None]
            if lines[-1][0] == marks.CREATING:
                if _number_lives(owner, near):
                    return
                files += _unnamed(owner.pid, lines[-1])
            for file in files:
                file.unlink(missing_ok=True)
        elif not near:  # nothing says that it has ever been locked
            return
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _marks() -> list[Path]:
    try:
        return list(marks.FOLDER.glob(f"{marks.PREFIX}*"))
    except OSError:  # no such folder, or no descriptor left: another time, then
        return []


def _lock_of_the_dead(path: Path) -> int | None:
    """A descriptor of a mark of this user, locked; None where its process lives, or somebody else is sweeping it."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if _is_ours(os.fstat(fd)) and marks.try_lock(fd):
        return fd
    os.close(fd)
    return None


def _named(line: list[str]) -> Path | None:
    """The file that a line of a mark names, if it is still the same one."""
    match line:
        case [marks.FILE, device, inode, name] if "/" not in name:
            file = marks.FOLDER / name
            status = _status(file)
            if status is not None and (str(status.st_dev), str(status.st_ino)) == (device, inode):
                return file
    return None


def _unnamed(pid: int, line: list[str]) -> list[Path]:
    """The file that was being created when process `pid` was killed: the only one of its number, size and inode."""
    try:
        device, inode, nbytes = (int(word) for word in line[1:])
    except ValueError:  # the kill tore the line
        return []
    found = []
    for file in marks.FOLDER.glob(f"torch_{pid}_*"):
        status = _status(file)
        if status is None or status.st_dev != device or not inode < status.st_ino <= inode + _NEXT_INODES:
            continue
        if status.st_size in (0, nbytes) or (nbytes < 0 and status.st_size <= _FEW_BYTES):
            found.append(file)
    return found if len(found) == 1 else []


def _number_lives(owner: Process, near: bool) -> bool:
    """Whether another process with the number of `owner` may live, here or wherever there are marks."""
    if near and start_time(owner.pid):
        return True
    for path in _marks():
        other = marks.owner_of(path)
        if other is None or other.pid != owner.pid or other == owner:
            continue
        if other == Process.current():
            return True
        with suppress(OSError):
            fd = _lock_of_the_dead(path)
            if fd is None:
                return True
            os.close(fd)
    return False


def _status(file: Path) -> os.stat_result | None:
    """What lies there, if it is a file of this user; links are not followed."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status if _is_ours(status) else None


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
