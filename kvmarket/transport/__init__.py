"""Transport: how one process reads another's pool. CUDA IPC on GPUs, POSIX shared memory on a CPU-only machine.

`export` turns the storages of a pool into a travelling descriptor, once; `map_memory` turns a descriptor into byte
tensors on the reader's own device. Both sides of the interface are these two functions and `Memory`.
"""

from __future__ import annotations

from kvmarket.transport.memory import CudaHandle, CudaMemory, Memory, ShmMemory
from kvmarket.transport.sharing import enable_peer_access, export, map_memory

__all__ = ["CudaHandle", "CudaMemory", "Memory", "ShmMemory", "enable_peer_access", "export", "map_memory"]
