"""Remove the files in /dev/shm that killed processes of this user left there.

torch names two kinds of files ``torch_<pid>_...``: a storage that is moved into shared memory has a name while its
memory is allocated, and the counters behind CUDA IPC handles have one as long as their process lives. A killed process
leaves these files behind. `sweep` removes exactly the files that the mark of a dead process names (see `marks`). It
never removes a file of a living process of any PID namespace, of another user, or of a process without a mark.
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

_NEXT_INODES = 64  # the file that was being created has one of these inodes: other processes create files too
_FEW_BYTES = 1 << 20
_MOST_BYTES = 1 << 20  # that are read of a mark


def sweep() -> None:
    """Remove the files that dead processes of this user left. Costs a listing of /dev/shm, and 50 us for each mark."""
    me = Process.current()
    for path in _marks():
        owner = marks.owner_of(path)
        if owner is not None and owner != me:  # opening and closing our own mark would end its lock
            with suppress(OSError):  # another process has just removed it, say
                _sweep_for(owner, path, near=owner.namespace == me.namespace)


def _sweep_for(owner: Process, path: Path, *, near: bool) -> None:
    """Remove the files that `owner` left, and its mark at `path`, if `owner` is certainly dead.

    `near`: `owner` is of our PID namespace. Raises OSError.
    """
    if owner.alive() if near else not path.lstat().st_size:  # empty: its process may be about to lock it
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
        elif not near:  # the mark may never have been locked, so a free lock proves nothing
            return
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _marks() -> list[Path]:
    try:
        return list(marks.FOLDER.glob(f"{marks.PREFIX}*"))
    except OSError:  # no such folder, or no descriptor left: a later sweep finds them
        return []


def _lock_of_the_dead(path: Path) -> int | None:
    """Lock a mark of this user and return a descriptor of it; None if its process lives, or another one sweeps it."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if _is_ours(os.fstat(fd)) and marks.try_lock(fd):
        return fd
    os.close(fd)
    return None


def _named(line: list[str]) -> Path | None:
    """The file that a line of a mark names; None if device or inode differ, or the line names no file."""
    match line:
        case [marks.FILE, device, inode, name] if "/" not in name:
            file = marks.FOLDER / name
            status = _status(file)
            if status is not None and (str(status.st_dev), str(status.st_ino)) == (device, inode):
                return file
    return None


def _unnamed(pid: int, line: list[str]) -> list[Path]:
    """The file that process `pid` was creating when it was killed, as a list of one.

    Empty unless exactly one file has the number of the process, and the size and inode that `line` of its mark expects.
    """
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
    """Whether another process with the number of `owner` may be alive, here or in a namespace that has marks."""
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
    """The status of `file` if it is a regular file of this user, else None; links are not followed."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status if _is_ours(status) else None


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
