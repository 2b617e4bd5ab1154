"""The library of the CUDA driver, for calls that torch does not have. By ctypes, which releases the GIL."""

from __future__ import annotations

import ctypes
import functools

from kvmarket.errors import TransportError


@functools.cache
def driver() -> ctypes.CDLL:
    """The driver's library. Raises TransportError where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise TransportError(f"the CUDA driver cannot be called: {error}; install an NVIDIA driver") from error
    library.cuStreamQuery.argtypes = [ctypes.c_void_p]  # every fetch calls it: plain integers are faster to pass
    return library


def explained(code: int) -> str:
    """The name of an error that a call of the driver returned, or its number."""
    name = ctypes.c_char_p()
    driver().cuGetErrorName(code, ctypes.byref(name))
    return (name.value or b"").decode() or str(code)
