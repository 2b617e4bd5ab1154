"""POSIX shared memory: the transport on a machine without GPUs."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from time import sleep
from typing import ClassVar

import msgspec
import torch

from kvmarket import counters
from kvmarket.errors import SharedMemoryError
from kvmarket.processes.marks import creating
from kvmarket.processes.shared_file import Process, SharedFile
from kvmarket.support.transient import is_transient
from kvmarket.transport.memory import Memory

TRIES, PAUSE_SECONDS = 5, 0.2  # for engines that start at the same time and compete for room in /dev/shm


class ShmMemory(Memory, msgspec.Struct, frozen=True, tag="shm"):
    """Memory in POSIX shared memory, one file per segment."""

    files: tuple[SharedFile, ...]
    mapped_on: ClassVar[str] = "cpu"

    @classmethod
    def export(cls, storages: Sequence[torch.UntypedStorage]) -> ShmMemory:
        """Move each CPU storage into shared memory in place; name the files. Costs one copy of the memory, once."""
        return ShmMemory(tuple(_share(storage) for storage in _with_room(storages)))

    def map(self, device: torch.device) -> list[torch.Tensor]:
        """Map each segment read-only: writing to one would crash. Raises NamespaceError or SharedMemoryError."""
        return [_bytes(file) for file in self.files]

    @property
    def owner(self) -> Process:
        """The process that owns the memory."""
        return self.files[0].owner

    @property
    def shared_files(self) -> tuple[SharedFile, ...]:
        """One file per segment."""
        return self.files

    def held_by(self, process: Process, descriptors: Iterator[int]) -> ShmMemory:
        """The same memory, with each file named by the next of these descriptors of `process`."""
        return type(self)(tuple(file.held_by(process, next(descriptors)) for file in self.files))


def _with_room(storages: Sequence[torch.UntypedStorage]) -> Sequence[torch.UntypedStorage]:
    """Return `storages`. Raises SharedMemoryError if /dev/shm has no room for those that are not shared yet."""
    need = sum(storage.nbytes() for storage in storages if not storage.is_shared())
    try:
        room = os.statvfs("/dev/shm")
    except OSError as error:
        raise SharedMemoryError(f"there is no /dev/shm ({error.strerror}); mount a tmpfs there") from error
    if need > room.f_bavail * room.f_frsize:
        raise SharedMemoryError(
            f"the cache needs {need / 1e6:.0f} MB of /dev/shm, {room.f_bavail * room.f_frsize / 1e6:.0f} MB are free; "
            "make the cache smaller or /dev/shm larger (mount -o remount,size=..., or --shm-size for a container)"
        )
    return storages


def _share(storage: torch.UntypedStorage) -> SharedFile:
    """Move one storage into shared memory and name its file.

    torch allocates the whole file first, so that no process dies of a missing page later. Two engines that allocate at
    the same time may both fail though one would fit: so each tries again after a random pause, up to `TRIES` times.
    """
    tries = 1
    while True:
        try:
            with creating(storage.nbytes()):
                fd, nbytes = storage._share_fd_cpu_()
            return SharedFile.of(fd, nbytes)
        except RuntimeError as error:
            if tries == TRIES or not is_transient(error):
                raise SharedMemoryError(
                    f"the cache cannot be moved into shared memory: {error}; see df /dev/shm, and ulimit -n"
                ) from error
            counters.add("share_retried", reason=type(error).__name__, detail=error)
        sleep(random.uniform(0.0, PAUSE_SECONDS) * tries)
        _with_room([storage])
        tries += 1


def _bytes(file: SharedFile) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(file.map(), dtype=torch.uint8)
