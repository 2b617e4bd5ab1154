"""CUDA IPC, by torch's storage sharing: the transport between GPUs.

A handle is opened with the *reader's own* device index, whatever the owner's was. CUDA then maps the memory there and
enables peer access, and Triton and ``copy_`` run at full rate. torch keeps one mapping per exported allocation and
process.

torch also exports an event, for readers that must wait for the owner's stream. kvmarket leaves it out: an offer is
published after the work that wrote its blocks has completed. CUDA keeps such events in files of /dev/shm, so that a
reader in a container with a /dev/shm of its own cannot open them ("mapping of buffer object failed", seen on H200,
driver of CUDA 13); the memory itself it can.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import torch

from kvmarket.errors import PeerAccessError, TransportError
from kvmarket.processes.marks import created, creating
from kvmarket.processes.shared_file import Process
from kvmarket.transport.memory import Memory

EVENT_BYTES = 64  # of a CUDA IPC event handle (cudaIpcEventHandle_t)


class CudaHandle(msgspec.Struct, frozen=True):
    """What torch needs to open one exported CUDA storage: a part of what ``UntypedStorage._share_cuda_`` returns."""

    handle: bytes
    nbytes: int
    offset: int
    ref_counter: bytes
    ref_counter_offset: int


class CudaMemory(Memory, msgspec.Struct, frozen=True, tag="cuda"):
    """Memory of one GPU, one CUDA IPC handle per segment."""

    owner: Process
    device: str  # UUID of the owner's GPU
    handles: tuple[CudaHandle, ...]
    mapped_on: ClassVar[str] = "cuda"

    @classmethod
    def export(cls, storages: Sequence[torch.UntypedStorage]) -> CudaMemory:
        """Export each storage; the device does not get the memory back while a reader has it mapped.

        Raises TransportError where the memory has no IPC handle.
        """
        device = storages[0].device
        try:
            handles = tuple(_share(storage) for storage in storages)
        except RuntimeError as error:
            raise TransportError(
                f"CUDA IPC cannot export the cache: {error}; memory of cumem, sleep mode or managed allocators has no "
                "IPC handle, allocate the cache with the default allocator"
            ) from error
        return CudaMemory(Process.current(), device_uuid(device), handles)

    def map(self, device: torch.device) -> list[torch.Tensor]:
        """Map each segment on `device`. The first one on another GPU costs 10 - 120 ms, later ones less than 1 ms.

        Raises SharedMemoryError if the owner is dead, PeerAccessError, or TransportError.
        """
        if self.owner.near:
            self.owner.check_alive()
        elif self.owner.pid == os.getpid():
            raise TransportError(
                f"owner and reader both have the process number {self.owner.pid}, in PID namespaces of their own: CUDA "
                "would take the memory for the reader's; start one of them again, or the containers with --pid=host"
            )
        tensors = []
        with torch.cuda.device(device):
            for handle in self.handles:
                try:
                    storage = torch.UntypedStorage._new_shared_cuda(device.index, *_arguments(handle))
                except RuntimeError as error:
                    raise _explain(error, self, device) from error
                tensors.append(torch.empty(0, dtype=torch.uint8, device=device).set_(storage))
        return tensors


def _share(storage: torch.UntypedStorage) -> CudaHandle:
    """Export one storage. The file in which torch counts readers (one file for many storages) is noted in our mark.

    torch expects one reader, and would keep the memory until that one has let it go: for ever, if none comes. So the
    reader that it expects is counted off at once. The driver keeps the memory while somebody has it mapped.
    """
    with creating(None):
        _, *fields, _event, _event_sync = storage._share_cuda_()
        handle = CudaHandle(*fields)
    created(handle.ref_counter.decode().removeprefix("/"))
    torch.UntypedStorage._release_ipc_counter_cuda(handle.ref_counter, handle.ref_counter_offset)
    return handle


def device_uuid(device: torch.device) -> str:
    """The GPU's UUID, which is the same in every process whatever CUDA_VISIBLE_DEVICES says."""
    return str(torch.cuda.get_device_properties(device).uuid)


def _arguments(handle: CudaHandle) -> tuple[bytes, int, int, bytes, int, bytes, bool]:
    return (
        handle.handle,
        handle.nbytes,
        handle.offset,
        handle.ref_counter,
        handle.ref_counter_offset,
        bytes(EVENT_BYTES),  # no event,
        False,  # and no waiting for one
    )


def _explain(error: RuntimeError, memory: CudaMemory, device: torch.device) -> TransportError:
    if memory.device != device_uuid(device) and ("peer" in str(error) or "invalid argument" in str(error)):
        return PeerAccessError(
            f"GPU {device_uuid(device)} cannot reach memory of GPU {memory.device} ({error}); "
            "see nvidia-smi topo -p2p r, and put the engines on GPUs with peer access"
        )
    return TransportError(
        f"a CUDA IPC handle of process {memory.owner.pid} cannot be opened ({error}); is the GPU "
        "visible to both, and in the same compute mode? Try containers with --pid=host --ipc=host"
    )
