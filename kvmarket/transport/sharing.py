"""Sharing memory, by whichever transport its device has."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvmarket.errors import PeerAccessError, TransportError
from kvmarket.processes.leftovers import mark, sweep
from kvmarket.transport.memory import CudaMemory, Memory, ShmMemory


def export(storages: Sequence[torch.UntypedStorage]) -> Memory:
    """Export `storages`, once, so that other processes of this user can map them; the caller keeps them alive.

    CPU storages are moved into shared memory in place (every tensor on them sees the move). Raises TransportError with
    what to do.
    """
    from kvmarket.transport import cuda_ipc, shm

    sweep()
    mark()
    kinds = {storage.device.type for storage in storages}
    if kinds == {"cpu"}:
        return shm.export(storages)
    if kinds == {"cuda"}:
        return cuda_ipc.export(storages)
    raise TransportError(f"memory on {sorted(kinds)} cannot be shared; put the whole cache on one CPU or CUDA device")


def map_memory(memory: Memory, device: torch.device) -> list[torch.Tensor]:
    """Map another process' memory: one 1-D uint8 tensor per segment, on `device`, for reading only.

    The memory stays mapped while the tensors live; the owner's death does not fault a reader. Raises SharedMemoryError,
    NamespaceError, PeerAccessError, or TransportError when the memory and the reader are not of one kind.
    """
    from kvmarket.transport import cuda_ipc, shm

    if isinstance(memory, ShmMemory) and device.type == "cpu":
        return shm.map_memory(memory)
    if isinstance(memory, CudaMemory) and device.type == "cuda":
        return cuda_ipc.map_memory(memory, device)
    raise TransportError(
        f"a reader on {device} cannot map {type(memory).__name__}; engines share only within one kind of device"
    )


def enable_peer_access(segment: torch.Tensor, device: torch.device) -> None:
    """Have kernels on `device` read `segment`, of another GPU of this same process.

    Raises PeerAccessError, or TransportError.
    """
    if {segment.device.type, device.type} != {"cuda"}:
        raise TransportError(f"a reader on {device} cannot read memory on {segment.device}; use one kind of device")
    if not torch.cuda.can_device_access_peer(device, segment.device):
        raise PeerAccessError(f"{device} has no peer access to {segment.device}; see nvidia-smi topo -p2p r")
    one = torch.empty(1, dtype=torch.uint8, device=device)
    torch.empty(1, dtype=torch.uint8, device=segment.device).copy_(one)  # torch enables it for a copy's source only
