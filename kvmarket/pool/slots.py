"""Convert the block ids that a caller passes to an array of slots, and check them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kvmarket.errors import SlotError

Slots: TypeAlias = npt.NDArray[np.int64]
UInt64s: TypeAlias = npt.NDArray[np.uint64]
FEW, MANY = 32, 512  # ids: up to FEW a list is checked fastest, from MANY on a table of all slots


def as_slots(block_ids: Sequence[int] | npt.NDArray[Any]) -> Slots:
    """Block ids as a one-dimensional int64 array: from a list, a tuple, a range, an integer array or tensor.

    Always a copy, so that the caller may change its own. Raises SlotError for anything else. Costs about 20 ns an id
    for a list.
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
    count = len(block_ids)
    if list(map(type, block_ids)).count(int) < count:
        bad = next(slot for slot in block_ids if type(slot) is not int)
        raise SlotError(f"block id {bad!r} is a {type(bad).__name__}; give plain integers")
    try:
        return np.frombuffer(bytearray(struct.Struct(f"{count}q").pack(*block_ids)), np.int64)
    except struct.error as error:
        raise SlotError("a block id is beyond 64 bits; give ids of slots") from error


def check_slots(block_ids: Sequence[int] | npt.NDArray[Any], count: int) -> Slots:
    """Block ids as an int64 array. Raises SlotError unless all are integers, 0 <= id < count, and none is repeated.

    Costs about 3 us for an array of up to some hundred ids, and 3 ns for each further id.
    """
    slots = as_slots(block_ids)
    if not _distinct(slots, count):
        _refuse(np.sort(slots), count)
    return slots


def _distinct(slots: Slots, count: int) -> bool:
    """Whether all ids are in range and none is repeated; uses the fastest method for their number."""
    if len(slots) <= FEW:
        few = slots.tolist()
        return not few or (min(few) >= 0 and max(few) < count and len(set(few)) == len(few))
    if len(slots) < MANY:
        ordered = slots.copy()
        ordered.sort()
        return bool(ordered[0] >= 0 and ordered[-1] < count and (ordered[1:] != ordered[:-1]).all())
    if slots.min() < 0 or slots.max() >= count:
        return False
    seen = np.zeros(count, np.bool_)
    seen[slots] = True
    return int(np.count_nonzero(seen)) == len(slots)


def _refuse(ordered: Slots, count: int) -> None:
    """Raise the SlotError for sorted ids of which some are out of range or repeated."""
    if ordered[0] < 0 or ordered[-1] >= count:
        bad = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise SlotError(f"block id {bad} is out of range; this pool has slots 0 to {count - 1}")
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    raise SlotError(f"block id {twice[0]} is given twice in one call; each block needs a slot of its own")
