"""Transport: how one process reads another's pool. CUDA IPC on GPUs, POSIX shared memory on a CPU-only machine.

`export` turns the storages of a pool into a travelling descriptor, once; `map_memory` turns a descriptor into byte
tensors on the reader's own device. Both sides of the interface are these two functions and `Memory`, of which each kind
is a module and a line in `sharing`; `decode_memory` reads descriptors that have come from somebody else.
"""

from __future__ import annotations

from kvmarket.transport.cuda_ipc import CudaMemory
from kvmarket.transport.memory import Memory
from kvmarket.transport.sharing import decode_memory, enable_peer_access, export, map_memory
from kvmarket.transport.shm import ShmMemory

__all__ = ["CudaMemory", "Memory", "ShmMemory", "decode_memory", "enable_peer_access", "export", "map_memory"]
