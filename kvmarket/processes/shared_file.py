"""Anonymous shared memory of a living process, named so that another process of the same user can map it read-only.

A `SharedFile` names an open descriptor of its owner (``/proc/<pid>/fd/<fd>``). Nothing has a name in any directory, so
nothing is left behind when the owner is killed; the kernel frees the memory with the last mapping. It needs one PID
namespace for owner and reader.
"""

from __future__ import annotations

import functools
import mmap
import os
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
        """This process. Raises SharedMemoryError where no descriptor is left to ask who it is."""
        return _current(os.getpid())

    def alive(self) -> bool:
        """Whether it lives; as far as its number tells, where no descriptor is left to ask more. Costs 20 us."""
        try:
            return start_time(self.pid) == self.start
        except OSError:
            return _in_use(self.pid)

    def check_alive(self) -> None:
        """Raise NamespaceError where the number means nothing here, SharedMemoryError where the process is gone.

        Costs 20 us.
        """
        if self.namespace != pid_namespace():
            raise NamespaceError(
                f"process {self.pid} lives in another PID namespace; run all engines of a market in one namespace "
                "(containers: --pid=host --ipc=host)"
            )
        if not self.alive():
            raise SharedMemoryError(
                f"process {self.pid} is gone, and its memory with it; nothing to do, its offers vanish"
            )


class SharedFile(msgspec.Struct, frozen=True):
    """A descriptor of `owner` that holds at least `nbytes` bytes of shared memory. Names memory, owns none."""

    owner: Process
    fd: int
    device: int
    inode: int
    nbytes: int

    @classmethod
    def of(cls, fd: int, nbytes: int) -> SharedFile:
        """Name descriptor `fd` of this process; it must stay open for as long as others may map it."""
        status = os.fstat(fd)
        return cls(Process.current(), fd, status.st_dev, status.st_ino, nbytes)

    def map(self) -> mmap.mmap:
        """Map the memory read-only; the mapping outlives its owner. Raises NamespaceError or SharedMemoryError.

        Costs 50 us.
        """
        self.owner.check_alive()
        try:
            return self._mapped()
        except OSError as error:
            advice = _MORE if is_transient(error) else _SAME_USER
            raise SharedMemoryError(
                f"shared memory of process {self.owner.pid} cannot be mapped ({error.strerror}); {advice}"
            ) from error

    def _mapped(self) -> mmap.mmap:
        fd = os.open(f"/proc/{self.owner.pid}/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != (self.device, self.inode) or status.st_size < self.nbytes:
                raise SharedMemoryError(
                    f"shared memory of process {self.owner.pid} is not what its owner said "
                    f"({status.st_size} bytes where {self.nbytes} were promised); its offers are ignored"
                )
            return mmap.mmap(fd, self.nbytes, prot=mmap.PROT_READ)
        finally:
            os.close(fd)


def start_time(pid: int) -> int:
    """Clock ticks after boot when process `pid` started; 0 if there is no such process, or it is a zombie.

    Raises OSError where that cannot be told: no descriptor is left, say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


@functools.lru_cache(maxsize=1)
def _current(pid: int) -> Process:
    """This process, whose number is `pid`: asked once, and again in a fork."""
    try:
        return Process(pid, start_time(pid), pid_namespace())
    except OSError as error:
        raise SharedMemoryError(f"this process cannot look itself up in /proc ({error.strerror}); {_MORE}") from error


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
