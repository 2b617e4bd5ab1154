"""Anonymous shared memory of a living process, named so that another process of the same user can map it read-only.

A `SharedFile` names an open descriptor of a process (``/proc/<pid>/fd/<fd>``). The memory has no name in any directory,
so nothing is left behind when the owner is killed: the kernel frees the memory with the last mapping. Where owner and
reader are in different PID namespaces, a process in the reader's namespace holds a descriptor that came over the
market's socket. The file is then named by that descriptor, and `through` is that process.
"""

from __future__ import annotations

import functools
import mmap
import os
import select
from pathlib import Path
from typing import Annotated

import msgspec

from kvmarket.errors import NamespaceError, SharedMemoryError
from kvmarket.support.transient import MORE, is_transient

_SAME_USER = "owner and reader must belong to the same user"
_MORE = f"{MORE}; it is tried again"


class Process(msgspec.Struct, frozen=True):
    """A process of this node, told apart from a later one with the same number by its start time."""

    pid: Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
    start: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    namespace: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

    @classmethod
    def current(cls) -> Process:
        """This process. Raises SharedMemoryError if /proc cannot be read, because no descriptor is left, say."""
        return _current(os.getpid())

    @property
    def near(self) -> bool:
        """Whether the process is in our PID namespace, so that its number is valid here. Costs 2 us."""
        return self.namespace == pid_namespace()

    def alive(self) -> bool:
        """Whether the process is alive. Costs 20 us.

        If no descriptor is left to read its start time, any process with its number counts. For a process of another
        PID namespace the pidfd of `watch_by` decides; without one it counts as alive.
        """
        if not self.near:
            pidfd = _ends.get(self, -1)
            return pidfd < 0 or not _readable(pidfd)
        try:
            return start_time(self.pid) == self.start
        except OSError:
            return _in_use(self.pid)

    def check_alive(self) -> None:
        """Raise NamespaceError for a process of another PID namespace, SharedMemoryError for one that is dead.

        Costs 20 us.
        """
        if not self.near:
            raise NamespaceError(
                f"process {self.pid} lives in another PID namespace, and its memory has not come over the market's "
                "socket; join the market that it is in"
            )
        if not self.alive():
            raise SharedMemoryError(
                f"process {self.pid} is gone, and its memory with it; nothing to do, its offers vanish"
            )


_ends: dict[Process, int] = {}  # pidfds of processes in other PID namespaces


def watch_by(process: Process, pidfd: int) -> None:
    """Let `Process.alive` use `pidfd` for a process of another PID namespace. The pidfd stays the caller's."""
    _ends[process] = pidfd


def watch_no_more(pidfd: int) -> None:
    """Forget a pidfd that was given to `watch_by`. Call this before closing it."""
    for process in [process for process, fd in _ends.items() if fd == pidfd]:
        del _ends[process]


class SharedFile(msgspec.Struct, frozen=True):
    """A descriptor of `owner` that refers to at least `nbytes` bytes of shared memory. Names memory, owns none.

    `through`: the process of our PID namespace whose descriptor `fd` is; None if `fd` is the owner's own.
    """

    owner: Process
    fd: int
    device: int
    inode: int
    nbytes: int
    through: Process | None = None

    @classmethod
    def of(cls, fd: int, nbytes: int) -> SharedFile:
        """Name descriptor `fd` of this process, which must stay open for as long as others may map the memory."""
        status = os.fstat(fd)
        return cls(Process.current(), fd, status.st_dev, status.st_ino, nbytes)

    def held_by(self, process: Process, fd: int) -> SharedFile:
        """The same memory, named by descriptor `fd` of `process`, which is of our PID namespace."""
        return msgspec.structs.replace(self, through=process, fd=fd)

    def held(self) -> bool:
        """Whether the descriptor that names the memory is still open. Costs 10 us."""
        try:
            return self._is(os.stat(self._path))  # noqa: PTH116 - what the link leads to has no path
        except OSError:
            return False

    def open(self, *, writable: bool = False) -> int:
        """Open the memory; the caller closes the descriptor. Raises NamespaceError or SharedMemoryError.

        Costs 40 us.
        """
        (self.through or self.owner).check_alive()
        try:
            fd = os.open(self._path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error) from error
        status = os.fstat(fd)
        if self._is(status) and status.st_size >= self.nbytes:
            return fd
        os.close(fd)
        raise SharedMemoryError(
            f"shared memory of process {self.owner.pid} is not what its owner said "
            f"({status.st_size} bytes where {self.nbytes} were promised); its offers are ignored"
        )

    def map(self, *, writable: bool = False) -> mmap.mmap:
        """Map the memory; the mapping outlives its owner. Raises NamespaceError or SharedMemoryError.

        `writable`: only for drivers that lock no read-only mapping; nobody writes there. Costs 50 us.
        """
        fd = self.open(writable=writable)
        try:
            return mmap.mmap(fd, self.nbytes, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(fd)

    @property
    def _path(self) -> str:
        return f"/proc/{(self.through or self.owner).pid}/fd/{self.fd}"

    def _is(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    def _unreadable(self, error: OSError) -> SharedMemoryError:
        advice = _MORE if is_transient(error) else _SAME_USER
        return SharedMemoryError(
            f"shared memory of process {self.owner.pid} cannot be mapped ({error.strerror}); {advice}"
        )


def start_time(pid: int) -> int:
    """Clock ticks after boot when process `pid` started; 0 if there is no such process, or it is a zombie.

    Raises OSError if /proc cannot be read, because no descriptor is left, say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


@functools.lru_cache(maxsize=1)
def _current(pid: int) -> Process:
    """This process, whose number is `pid`. Cached; a fork has another number."""
    try:
        return Process(pid, start_time(pid), pid_namespace())
    except OSError as error:
        raise SharedMemoryError(f"this process cannot look itself up in /proc ({error.strerror}); {_MORE}") from error


def _readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _in_use(pid: int) -> bool:
    """Whether some process has this number. Needs no descriptor."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def pid_namespace() -> int:
    """Inode number of this process' PID namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino
