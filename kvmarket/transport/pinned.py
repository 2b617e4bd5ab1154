"""Host memory that a GPU reads and writes in place: the driver locks its pages and gives it an address of the GPU.

It is used as a tensor on the GPU whose memory is the host's: kernels and the copy engine take its address as any other,
and reach it over the GPU's host link.
"""

from __future__ import annotations

import ctypes
import weakref

import torch

from kvmarket.errors import TransportError
from kvmarket.support.cuda_driver import driver, explained

_FOR_ALL_CONTEXTS, _FOR_DEVICE, _READ_ONLY = 1, 2, 8  # CU_MEMHOSTREGISTER_PORTABLE, _DEVICEMAP, _READ_ONLY
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class _Pinned:
    """Registered host memory, as torch takes it. Unregistered, and let go, when it is freed."""

    def __init__(self, address: int, nbytes: int, device: torch.device, keep: object, *, read_only: bool) -> None:
        flags = _FOR_ALL_CONTEXTS | _FOR_DEVICE | (_READ_ONLY if read_only else 0)
        on_device = ctypes.c_uint64()
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).query()  # now the calling thread has the context of the device
            where = ctypes.c_void_p(address)
            code = driver().cuMemHostRegister_v2(where, ctypes.c_size_t(nbytes), ctypes.c_uint(flags))
            if code:
                raise _refused(code, nbytes) from _cause(code)
            self._free = weakref.finalize(self, _unregister, address, device, keep)
            self._free.atexit = False  # then the process ends, and the driver with it
            code = driver().cuMemHostGetDevicePointer_v2(ctypes.byref(on_device), where, 0)
            if code:
                raise _refused(code, nbytes) from _cause(code)
        self.address = on_device.value
        shape, data = (nbytes,), (self.address, False)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 2}


def pinned(address: int, nbytes: int, device: torch.device, keep: object, *, read_only: bool = False) -> torch.Tensor:
    """Lock host memory, and return it as a 1-D uint8 tensor on `device`, which is a GPU. Owns `keep`, its memory.

    The memory is let go when the tensor is freed: no copy may use it then. `read_only`: the mapping is. Costs 0.2 s a
    GiB (H200, bench/lend/host.py), during which other threads run. Raises TransportError.
    """
    memory = _Pinned(address, nbytes, device, keep, read_only=read_only)
    tensor = torch.as_tensor(memory, device=device)
    if tensor.data_ptr() != memory.address:
        raise TransportError(f"torch copied locked memory of the host to {device}, where it was to be used in place")
    return tensor


def _unregister(address: int, device: torch.device, _keep: object) -> None:
    with torch.cuda.device(device):
        torch.cuda.current_stream(device).query()
        driver().cuMemHostUnregister(ctypes.c_void_p(address))


def _refused(code: int, nbytes: int) -> TransportError:
    return TransportError(
        f"the driver does not lock {nbytes / 1e6:.0f} MB of host memory: {explained(code)}; free some memory, or raise "
        "the limit of locked memory (ulimit -l)"
    )


def _cause(code: int) -> MemoryError | None:
    """What makes a failure transient."""
    return MemoryError() if code == _OUT_OF_MEMORY else None
