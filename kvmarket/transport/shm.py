"""POSIX shared memory: what a machine without GPUs uses."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import torch

from kvmarket.errors import SharedMemoryError
from kvmarket.marks import creating
from kvmarket.shared_file import SharedFile
from kvmarket.transport.memory import ShmMemory


def export(storages: Sequence[torch.UntypedStorage]) -> ShmMemory:
    """Move each CPU storage into shared memory in place, and name the files. Costs one copy of the memory, once."""
    need = sum(storage.nbytes() for storage in storages if not storage.is_shared())
    room = os.statvfs("/dev/shm")
    if need > room.f_bavail * room.f_frsize:
        raise SharedMemoryError(
            f"the cache needs {need / 1e6:.0f} MB of /dev/shm, {room.f_bavail * room.f_frsize / 1e6:.0f} MB are free; "
            "make the cache smaller or /dev/shm larger (mount -o remount,size=..., or --shm-size for a container)"
        )
    return ShmMemory(tuple(_share(storage) for storage in storages))


def _share(storage: torch.UntypedStorage) -> SharedFile:
    try:
        with creating(storage.nbytes()):
            fd, nbytes = storage._share_fd_cpu_()
    except RuntimeError as error:
        raise SharedMemoryError(f"the cache cannot be moved into shared memory: {error}; see df /dev/shm") from error
    return SharedFile.of(fd, nbytes)


def map_memory(memory: ShmMemory) -> list[torch.Tensor]:
    """Map each segment read-only as a uint8 tensor; writing through one would fault."""
    return [_bytes(file) for file in memory.files]


def _bytes(file: SharedFile) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(file.map(), dtype=torch.uint8)
