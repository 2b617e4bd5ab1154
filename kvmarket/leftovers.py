"""Shared memory with a name that a killed process left in /dev/shm, where nobody else knows of it.

torch names two kinds of files ``torch_<pid>_...``: a storage that is moved into shared memory has a name for some us,
and the counters behind CUDA IPC handles as long as their process lives. A process that is killed leaves them. So
whoever shares memory leaves a mark, and whoever finds the mark of a dead process removes what that process left. Files
of others are not touched.
"""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from pathlib import Path

from kvmarket.shared_file import Process, pid_namespace, start_time

FOLDER = Path("/dev/shm")
_PREFIX = "kvmarket-shares-"


def mark() -> None:
    """Say that this process shares memory, until it ends. Costs some 50 us."""
    me = Process.current()
    path = FOLDER / f"{_PREFIX}{me.namespace}-{me.pid}-{me.start}"
    with suppress(OSError):  # no room, not even for a name: then torch will say so too
        if not path.exists():
            path.touch(mode=0o600)
            atexit.register(_unmark, path, me.pid)


def sweep() -> None:
    """Remove what dead processes of this user and namespace left. Costs a listing of /dev/shm."""
    marks: list[Path] = []
    with suppress(OSError):  # no such folder, or no descriptor left: another time, then
        marks = list(FOLDER.glob(f"{_PREFIX}{pid_namespace()}-*"))
    for path in marks:
        pid, _, start = path.name.rpartition(f"{pid_namespace()}-")[2].partition("-")
        with suppress(OSError, ValueError):
            if path.stat().st_uid == os.getuid() and start_time(int(pid)) != int(start):
                for file in FOLDER.glob(f"torch_{int(pid)}_*"):
                    file.unlink(missing_ok=True)
                path.unlink(missing_ok=True)


def _unmark(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork that ends says nothing of its parent
        path.unlink(missing_ok=True)
