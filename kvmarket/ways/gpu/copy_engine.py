"""Calls of the CUDA driver that torch does not have: the copy engine copies many ranges in one call.

The functions are called by ctypes, which releases the GIL. Addresses are of device memory or of pinned host memory.
The CUDA context of the stream must be current in the calling thread; it is after any call of torch on the stream.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from kvmarket.errors import TransportError
from kvmarket.pool import UInt64s
from kvmarket.support.cuda_driver import driver, explained

_IN_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
_ATTRIBUTES = np.array([_IN_STREAM_ORDER, 0, 0, 0, 0, 0], np.int32)  # CUmemcpyAttributes without hints and flags
_FROM_FIRST = np.zeros(1, np.uint64)  # the attributes apply from range 0 on: to all ranges


@functools.cache
def takes_batches() -> bool:
    """Whether the driver copies many ranges in one call (CUDA 12.8, driver 570)."""
    try:
        return hasattr(driver(), "cuMemcpyBatchAsync")
    except TransportError:
        return False


def copy_ranges(destinations: UInt64s, sources: UInt64s, sizes: UInt64s, stream: int) -> None:
    """Copy ``sizes[i]`` bytes from ``sources[i]`` to ``destinations[i]`` on the raw ``stream``, in any order.

    Returns at once. Costs about 5 us and 0.5 us a range. Raises TransportError; some ranges may then be under way.
    """
    if not len(sizes):
        return
    arrays = [np.ascontiguousarray(each, np.uint64) for each in (destinations, sources, sizes)]
    failed = ctypes.c_size_t()
    code = driver().cuMemcpyBatchAsync(
        *(_pointer(each) for each in arrays),
        ctypes.c_size_t(len(sizes)),
        _pointer(_ATTRIBUTES),
        _pointer(_FROM_FIRST),
        ctypes.c_size_t(1),
        ctypes.byref(failed),
        ctypes.c_void_p(stream),
    )
    _check(code, f"{len(sizes)} ranges")


def copy_range(destination: int, source: int, size: int, stream: int) -> None:
    """Copy ``size`` bytes on the raw ``stream``; returns at once. Costs about 2 us. Raises TransportError."""
    pointers = ctypes.c_uint64(destination), ctypes.c_uint64(source)
    _check(driver().cuMemcpyAsync(*pointers, ctypes.c_size_t(size), ctypes.c_void_p(stream)), f"{size} bytes")


def fill_zero(address: int, size: int, stream: int) -> None:
    """Zero ``size`` bytes of device memory on the raw ``stream``; returns at once. Raises TransportError."""
    start, count, where = ctypes.c_uint64(address), ctypes.c_size_t(size), ctypes.c_void_p(stream)
    _check(driver().cuMemsetD8Async(start, ctypes.c_ubyte(0), count, where), f"{size} bytes")


def idle(stream: int) -> bool:
    """Whether all work on the raw ``stream`` is done. Costs 1 us."""
    return bool(driver().cuStreamQuery(stream) == 0)


def _pointer(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _check(code: int, what: str) -> None:
    if code:
        raise TransportError(f"the copy engine refused {what}: {explained(code)}; see kvmarket doctor")
