"""Find elements of a paged cache that share memory, without a loop over the slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvmarket.support.sets import distinct

if TYPE_CHECKING:
    from kvmarket.layout.layout import Layout, Part

Ints = npt.NDArray[np.int64]


def overlapping_parts(layout: Layout, bases: Sequence[int]) -> tuple[int, int] | None:
    """Return the numbers of two parts whose elements share bytes (one part twice if its own do), or None.

    ``bases`` are the addresses of the segments. For parts with the same slot stride the answer is exact. Parts with
    different slot strides count as sharing if the ranges from their first to their last byte overlap. Costs as much as
    sorting one slot's runs.
    """
    clash = _interleaved(layout, bases)
    if clash is not None:
        return clash
    for stride in sorted({part.slot_stride for part in layout.parts}):
        every = layout.slots == 1
        members = [number for number, part in enumerate(layout.parts) if every or part.slot_stride == stride]
        runs = [_runs(layout.parts[number], layout.item_bytes, bases) for number in members]
        owner = np.repeat(np.array(members, np.int64), [len(start) for start, _ in runs])
        start = np.concatenate([start for start, _ in runs])
        length = np.repeat(np.array([length for _, length in runs], np.int64), [len(start) for start, _ in runs])
        clash = _clash(owner, start, length, stride, layout.slots)
        if clash is not None or layout.slots == 1:
            return clash
    return None


def _interleaved(layout: Layout, bases: Sequence[int]) -> tuple[int, int] | None:
    """Find two parts with different slot strides whose ranges, from first to last byte, overlap."""
    if layout.slots == 1:
        return None
    reach: dict[int, tuple[int, int]] = {}  # slot stride -> (furthest end so far, its part)
    first = [bases[part.segment] + part.offset for part in layout.parts]
    for number in sorted(range(len(first)), key=first.__getitem__):
        part = layout.parts[number]
        for stride, (end, other) in reach.items():
            if stride != part.slot_stride and end > first[number]:
                return other, number
        end = first[number] + (layout.slots - 1) * part.slot_stride + part.last + layout.item_bytes
        reach[part.slot_stride] = max(reach.get(part.slot_stride, (0, 0)), (end, number))
    return None


def _runs(part: Part, item: int, bases: Sequence[int]) -> tuple[Ints, int]:
    """Return start addresses and common length of the contiguous runs of slot 0, in any order of the dimensions."""
    dims = sorted(zip(part.strides, part.shape, strict=True))
    length = item
    while dims and dims[0][0] == length:
        length *= dims.pop(0)[1]
    start = np.array([bases[part.segment] + part.offset], np.int64)
    for stride, size in dims:
        start = (start[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return start, length


def _clash(owner: Ints, start: Ints, length: Ints, stride: int, slots: int) -> tuple[int, int] | None:
    """Find two runs that overlap, each in some slot; return their owners.

    A run that starts at ``q * stride + r`` in slot 0 is at (q + s, r) in slot s. So two runs overlap if their ranges of
    r overlap and their q differ by less than ``slots``. To find them, all runs are cut at all ends of ranges of r, and
    pieces with equal r are compared by q (`turn`).
    """
    if slots > 1 and bool((length > stride).any()):
        number = int(owner[np.argmax(length)])
        return number, number
    if slots == 1:
        stride = int((start + length).max()) + 1
    turn = start // stride
    low = start - turn * stride
    high = low + length
    over = np.flatnonzero(high > stride)  # a run that crosses the end of a stride continues in the next one
    owner = np.concatenate([owner, owner[over]])
    turn = np.concatenate([turn, turn[over] + 1])
    low = np.concatenate([low, np.zeros(len(over), np.int64)])
    high = np.concatenate([np.minimum(high, stride), high[over] - stride])

    cuts = distinct(np.concatenate([low, high]))
    first = np.searchsorted(cuts, low)
    count = np.searchsorted(cuts, high) - first
    run = np.repeat(np.arange(len(owner)), count)
    cell = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    order = np.lexsort((turn[run], cell))
    cell, turn, owner = cell[order], turn[run][order], owner[run][order]
    met = np.flatnonzero((np.diff(cell) == 0) & (np.diff(turn) < slots))
    return (int(owner[met[0]]), int(owner[met[0] + 1])) if len(met) else None
