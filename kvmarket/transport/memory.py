"""The travelling descriptors of a pool's memory."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvmarket.processes.shared_file import Process, SharedFile


class ShmMemory(msgspec.Struct, frozen=True, tag="shm"):
    """Memory in POSIX shared memory, one file per segment."""

    files: tuple[SharedFile, ...]

    @property
    def owner(self) -> Process:
        """The process that owns the memory."""
        return self.files[0].owner

    def held_by(self, process: Process, descriptors: Iterator[int]) -> ShmMemory:
        """The same memory, named by as many of these descriptors of a process beside us as it has files."""
        return ShmMemory(tuple(file.held_by(process, next(descriptors)) for file in self.files))


class CudaHandle(msgspec.Struct, frozen=True):
    """What torch needs to open one exported CUDA storage (fields in the order of ``UntypedStorage._share_cuda_``)."""

    handle: bytes
    nbytes: int
    offset: int
    ref_counter: bytes
    ref_counter_offset: int
    event: bytes
    event_sync: bool


class CudaMemory(msgspec.Struct, frozen=True, tag="cuda"):
    """Memory of one GPU, one CUDA IPC handle per segment."""

    owner: Process
    device: str  # UUID of the owner's GPU
    handles: tuple[CudaHandle, ...]

    @property
    def files(self) -> tuple[SharedFile, ...]:
        """None: the driver finds it by its handles."""
        return ()

    def held_by(self, process: Process, descriptors: Iterator[int]) -> CudaMemory:
        """The same memory."""
        return self


Memory = ShmMemory | CudaMemory
