"""Block ids as callers give them, made into an array of slots, or refused."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kvmarket.errors import SlotError

Slots: TypeAlias = npt.NDArray[np.int64]
UInt64s: TypeAlias = npt.NDArray[np.uint64]
Flags: TypeAlias = npt.NDArray[np.bool_]


def as_slots(block_ids: Sequence[int] | npt.NDArray[Any]) -> Slots:
    """Block ids as a one-dimensional int64 array: from a list, a tuple, a range, an integer array or tensor.

    Never the argument itself: it may be used later, and the caller may change what is his. Raises SlotError for
    anything else. Costs some 20 ns an id for a list.
    """
    if isinstance(block_ids, np.ndarray) and block_ids.dtype == np.int64 and block_ids.ndim == 1:
        own: Slots = block_ids.copy()
        return own
    if hasattr(block_ids, "tolist"):
        block_ids = block_ids.tolist()
    if not isinstance(block_ids, list | tuple | range):
        raise SlotError(f"block_ids is a {type(block_ids).__name__}; give a list of integers")
    if isinstance(block_ids, range):
        return np.arange(block_ids.start, block_ids.stop, block_ids.step, dtype=np.int64)
    if not set(map(type, block_ids)) <= {int}:
        bad = next(slot for slot in block_ids if type(slot) is not int)
        raise SlotError(f"block id {bad!r} is a {type(bad).__name__}; give plain integers")
    try:
        return np.frombuffer(array("q", block_ids), np.int64) if block_ids else np.empty(0, np.int64)
    except OverflowError as error:
        raise SlotError("a block id is beyond 64 bits; give ids of slots") from error


def check_slots(block_ids: Sequence[int] | npt.NDArray[Any], count: int) -> Slots:
    """Block ids as an array. Raises SlotError unless all are integers of 0 <= id < count and no one comes twice."""
    slots = as_slots(block_ids)
    if len(slots) <= 8:  # numpy would take longer
        few = slots.tolist()
        if not few or (min(few) >= 0 and max(few) < count and len(set(few)) == len(few)):
            return slots
    ordered = np.sort(slots)
    if ordered[0] < 0 or ordered[-1] >= count:
        bad = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise SlotError(f"block id {bad} is out of range; this pool has slots 0 to {count - 1}")
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise SlotError(f"block id {ordered[twice[0]]} is given twice in one call; each block needs a slot of its own")
    return slots
