"""Convert the tokens and offers that a caller passes to flat arrays, and check them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvmarket.errors import MisuseError, TokenError
from kvmarket.support.flags import leading

Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]


class SupportsArray(Protocol):
    """An object that numpy can view as an array, such as a CPU tensor of torch."""

    def __array__(self) -> NDArray[Any]:
        """Return the values as an array."""
        ...


Integers: TypeAlias = Sequence[int] | NDArray[Any] | SupportsArray


def as_tokens(tokens: Integers) -> Int32s:
    """Return tokens as a contiguous one-dimensional int32 array in native byte order.

    Takes a sequence of ints, an integer array of any width, or an object that numpy can view as one (a CPU tensor of
    torch). The result may be the argument itself (a contiguous int32 array is never copied) and may be read-only: do
    not write to it.

    Raises TokenError for booleans, floats, other shapes, and values that do not fit 32 bits with sign.
    Cost: nothing for a contiguous int32 array; one pass otherwise, some 10 ns a token for a list.

    >>> as_tokens([1, 2, -3])
    array([ 1,  2, -3], dtype=int32)
    >>> as_tokens([1, 2**31])
    Traceback (most recent call last):
        ...
    kvmarket.errors.TokenError: tokens must be integers that fit 32 bits with sign: ...
    """
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.int32 and tokens.ndim == 1 and tokens.flags.c_contiguous:
        return tokens
    try:
        return _flat(tokens, "i", np.dtype(np.int32))
    except (ValueError, OverflowError, TypeError) as error:
        raise TokenError(
            f"tokens must be integers that fit 32 bits with sign: {error}; "
            "give a flat list of ints or a one-dimensional int32 array"
        ) from error


def as_offers(offers: Integers | Iterable[int]) -> Int64s:
    """Return offers as a contiguous one-dimensional int64 array, in the order given; perhaps the argument itself.

    Raises MisuseError for values that are not ints, 0 <= offer < 2**63. Cost: one pass.

    >>> as_offers({7})
    array([7])
    """
    if isinstance(offers, np.ndarray) and offers.dtype == np.int64 and offers.ndim == 1 and offers.flags.c_contiguous:
        array: Int64s = offers
    else:
        array = _as_int64s(offers)
    if leading(array >= 0) < array.size:
        raise MisuseError(f"offers must be ints of 0 <= offer < 2**63, not {int(array.min())}; give other numbers")
    return array


def _as_int64s(offers: Integers | Iterable[int]) -> Int64s:
    """Convert offers that are not an int64 array yet. Raises MisuseError."""
    if not isinstance(offers, Sequence) and not hasattr(offers, "__array__"):
        offers = list(offers)
    try:
        return _flat(offers, "q", np.dtype(np.int64))
    except (ValueError, OverflowError, TypeError) as error:
        raise MisuseError(f"offers must be ints of 0 <= offer < 2**63: {error}; give a flat list of ints") from error


def _flat(values: Any, code: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values as a flat array of `dtype` (`code` in struct). Raises ValueError, OverflowError or TypeError."""
    if not isinstance(values, np.ndarray):
        if isinstance(values, (str, bytes, bytearray)):
            raise TypeError(f"{type(values).__name__} is text, not integers")
        if not hasattr(values, "__array__") and not isinstance(values, memoryview):
            return _packed(values, code, dtype)
        values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{values.ndim} dimensions")
    if values.dtype.kind not in "iu":
        raise TypeError(f"they are {values.dtype}")
    if values.size and not np.can_cast(values.dtype, dtype):
        low, high = int(values.min()), int(values.max())
        bounds = np.iinfo(dtype)
        if low < bounds.min or high > bounds.max:
            raise OverflowError(f"{low if low < bounds.min else high} is out of range")
    return np.ascontiguousarray(values, dtype=dtype)


def _packed(values: Any, code: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a sequence of ints as an array. struct is three times as fast as numpy here, and refuses floats.

    Uses a `struct.Struct`, because `struct.pack` would copy its arguments once more to split off the format.
    """
    if not isinstance(values, Sequence):
        raise TypeError(f"{type(values).__name__} is not a sequence")
    try:
        array = np.frombuffer(struct.Struct(f"{len(values)}{code}").pack(*values), dtype=dtype)
    except struct.error as error:
        raise ValueError(str(error)) from error
    for place in np.flatnonzero((array >> 1) == 0).tolist():  # zero or one: these might be booleans
        if isinstance(values[place], (bool, np.bool_)):
            raise TypeError(f"{values[place]} is a boolean")
    return array
