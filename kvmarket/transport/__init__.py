"""Transport: how one process reads another's pool.

CUDA IPC on GPUs, POSIX shared memory on a CPU-only machine, and shared memory that is locked for a GPU where a lender
keeps blocks of engines on GPUs in the host's memory.

The owner calls `export` once, which turns the storages of a pool into a `Memory`: a descriptor that travels. A reader
calls `decode_memory` on what it received, and `map_memory`, which gives byte tensors on its own device. Each kind of
memory is one module, and one line in `sharing`.
"""

from __future__ import annotations

from kvmarket.transport.cuda_ipc import CudaMemory
from kvmarket.transport.host import HostMemory
from kvmarket.transport.memory import Memory
from kvmarket.transport.sharing import decode_memory, enable_peer_access, export, map_memory
from kvmarket.transport.shm import ShmMemory

__all__ = [
    "CudaMemory",
    "HostMemory",
    "Memory",
    "ShmMemory",
    "decode_memory",
    "enable_peer_access",
    "export",
    "map_memory",
]
