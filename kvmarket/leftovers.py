"""Shared memory that a process left behind because it was killed while torch gave it a name, and nobody else knows.

torch moves a storage into a file of /dev/shm, ``torch_<pid>_...``, and unlinks it at once; a kill between the two
leaves it, room and all. So whoever is about to do that says so by a file of his own, and whoever finds one of a dead
process removes what that process left. Files of others are not touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmarket.shared_file import Process, pid_namespace, start_time

FOLDER = Path("/dev/shm")
_PREFIX = "kvmarket-moving-"


@contextmanager
def moving() -> Iterator[None]:
    """While storages are moved into shared memory: say so. Costs some 50 us."""
    me = Process.current()
    mark = FOLDER / f"{_PREFIX}{me.namespace}-{me.pid}-{me.start}"
    try:
        mark.touch(mode=0o600)
    except OSError:  # no room, not even for a name: then torch will say so too
        yield
        return
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def sweep() -> None:
    """Remove what dead processes of this user and namespace left. Costs a listing of /dev/shm."""
    if not FOLDER.is_dir():
        return
    for mark in FOLDER.glob(f"{_PREFIX}{pid_namespace()}-*"):
        pid, _, start = mark.name.rpartition(f"{pid_namespace()}-")[2].partition("-")
        with suppress(OSError, ValueError):
            if mark.stat().st_uid == os.getuid() and start_time(int(pid)) != int(start):
                for file in FOLDER.glob(f"torch_{int(pid)}_*"):
                    file.unlink(missing_ok=True)
                mark.unlink(missing_ok=True)
