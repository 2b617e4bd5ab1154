"""The list of the kinds of memory, and the functions that export and map memory of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import msgspec
import torch

from kvmarket.errors import PeerAccessError, TransportError
from kvmarket.processes.leftovers import mark, sweep
from kvmarket.transport.cuda_ipc import CudaMemory
from kvmarket.transport.host import HostMemory
from kvmarket.transport.memory import Memory
from kvmarket.transport.shm import ShmMemory

# One line a kind; the first one that takes a cache exports it.
KINDS: list[type[Memory]] = [ShmMemory, CudaMemory, HostMemory]


def export(storages: Sequence[torch.UntypedStorage]) -> Memory:
    """Export `storages`, once, so that other processes of this user can map them; the caller keeps them alive.

    CPU storages are moved into shared memory in place; every tensor that uses them moves along. First removes the files
    that dead processes left (see `leftovers`). Raises TransportError.
    """
    sweep()
    mark()
    for kind in KINDS:
        if kind.takes(storages):
            return kind.export(storages)
    where = sorted({storage.device.type for storage in storages})
    raise TransportError(f"memory on {where} cannot be shared; put the whole cache on one CPU or CUDA device")


def map_memory(memory: Memory, device: torch.device) -> list[torch.Tensor]:
    """Map another process' memory: one 1-D uint8 tensor per segment, on `device`, for reading only.

    The memory stays mapped while the tensors live; the owner's death does not fault a reader. Raises SharedMemoryError,
    NamespaceError, PeerAccessError, or TransportError if `device` cannot map this kind or the driver refuses.
    """
    if device.type != memory.mapped_on:
        raise TransportError(
            f"a reader on {device} cannot map {type(memory).__name__}; engines share only within one kind of device"
        )
    return memory.map(device)


def decode_memory(kind: type, value: Any) -> Any:
    """The ``dec_hook`` of msgspec for messages that hold a `Memory`: decodes `value` to one of `KINDS`, by its tag.

    Raises msgspec.ValidationError for a kind that is not in `KINDS`.
    """
    if kind is not Memory:
        raise NotImplementedError(f"{kind.__name__} is no type that can be decoded; make it a msgspec.Struct")
    return msgspec.convert(value, Union[tuple(KINDS)])  # noqa: UP007 - as many as there are


def enable_peer_access(segment: torch.Tensor, device: torch.device) -> None:
    """Let kernels on `device` read `segment`, which this same process allocated on another GPU.

    Raises PeerAccessError, or TransportError.
    """
    if {segment.device.type, device.type} != {"cuda"}:
        raise TransportError(f"a reader on {device} cannot read memory on {segment.device}; use one kind of device")
    if not torch.cuda.can_device_access_peer(device, segment.device):
        raise PeerAccessError(f"{device} has no peer access to {segment.device}; see nvidia-smi topo -p2p r")
    one = torch.empty(1, dtype=torch.uint8, device=device)
    torch.empty(1, dtype=torch.uint8, device=segment.device).copy_(one)  # torch enables it for a copy's source only
