"""Compare arrays bit by bit, and say where they first differ."""

from __future__ import annotations

import numpy as np
import torch

from kvmarket.layout.layout import Layout
from kvmarket.layout.paged import SlotArray


def assert_bitwise(actual: SlotArray, expected: SlotArray) -> None:
    """Raise AssertionError unless all bytes of all segments, gaps included, are equal.

    The message names the first wrong byte, the slot, part and coordinate it belongs to, both values, and the counts.
    """
    assert actual.layout == expected.layout, f"{actual.layout} is not {expected.layout}"
    for number, (got, want) in enumerate(zip(actual.segments, expected.segments, strict=True)):
        size = actual.layout.segments[number]
        if torch.equal(got[:size], want[:size]):
            continue
        wrong = torch.nonzero(got[:size] != want[:size]).flatten().cpu().numpy()
        first = int(wrong[0])
        place = whereabouts(actual.layout, number, first)
        raise AssertionError(
            f"{len(wrong)} of {size} bytes of segment {number} are wrong, the first at {first} ({place}): "
            f"{got[first].item():#04x} instead of {want[first].item():#04x}"
        )


def assert_same_blocks(
    actual: SlotArray, actual_slots: torch.Tensor, expected: SlotArray, expected_slots: torch.Tensor
) -> None:
    """Raise AssertionError unless the slots hold equal blocks; both arrays must have parts of the same shapes."""
    for number, (got, want) in enumerate(zip(actual.part_views(), expected.part_views(), strict=True)):
        ours, theirs = got[actual_slots], want[expected_slots]
        if not torch.equal(ours, theirs):
            index = tuple(torch.nonzero(ours != theirs)[0].tolist())
            raise AssertionError(
                f"slot {int(actual_slots[index[0]])} part {number} coordinate {index[1:]}: {ours[index].item():#x} "
                f"instead of {theirs[index].item():#x} of slot {int(expected_slots[index[0]])}"
            )


def whereabouts(layout: Layout, segment: int, byte: int) -> str:
    """Describe a byte of a segment: its slot, part and coordinate, or that it is in a gap."""
    for number, part in enumerate(layout.parts):
        if part.segment != segment:
            continue
        offsets = np.array([part.offset], np.int64)
        for size, stride in zip(part.shape, part.strides, strict=True):
            offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
        for slot in range(layout.slots):
            start = offsets + slot * part.slot_stride
            index = np.flatnonzero((start <= byte) & (byte < start + layout.item_bytes))
            if len(index):
                coordinate = tuple(int(i) for i in np.unravel_index(index[0], part.shape)) if part.shape else ()
                return f"slot {slot}, part {number}, coordinate {coordinate}, byte {byte - int(start[index[0]])} of it"
    return "a gap that belongs to no slot"
