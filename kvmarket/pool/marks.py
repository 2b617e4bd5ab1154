"""Marks: bytes that are written into a slot which holds no block, to find out later whether the slot was written.

An engine that computes a block overwrites all bytes of its slot, by whatever kernel. So a slot that still has its mark
holds no block. A kernel may read a marked slot and mask the result out: the mark is small numbers, never NaN.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from kvmarket.layout.paged import SlotArray
from kvmarket.pool.slots import Slots
from kvmarket.support.flags import Flags

MARK_BYTES = 8
SMALL = 0x3F  # the random bits of each byte: as elements of any float type such bytes are numbers below 2, never NaN


class Marks:
    """Puts marks into the slots of one memory, and looks for them. Thread-safe."""

    def __init__(self, array: SlotArray) -> None:
        """Choose the mark for the slots of `array`; writes nothing yet."""
        self._array = array
        self._mark = torch.frombuffer(bytearray(each & SMALL for each in os.urandom(MARK_BYTES)), dtype=torch.uint8)
        self._stream: torch.cuda.Stream | None = None

    def put(self, slots: Slots) -> bool:
        """Write the mark into `slots`, and wait until it is there. Costs a few us, on a GPU about 50 us.

        Returns False, and writes nothing, if the first contiguous range of a slot is shorter than MARK_BYTES.
        """
        corner = self._corner()
        if corner is None or not len(slots):
            return corner is not None
        if self._array.device.type == "cpu":
            corner[torch.from_numpy(slots)] = self._mark
            return True
        with torch.cuda.device(self._array.device):
            self._stream = stream = self._stream or torch.cuda.Stream(priority=-1)
            with torch.cuda.stream(stream):
                device = self._array.device
                corner[torch.from_numpy(slots).to(device)] = self._mark.to(device)
            stream.synchronize()
        return True

    def look(self, slots: Slots) -> Callable[[], Flags]:
        """Start to look which of `slots` have their mark, after the work on the current stream.

        Returns a function that says it for each slot. On a GPU call it only when the stream is done with this work.
        """
        corner = self._corner()
        if corner is None:
            return lambda: np.zeros(len(slots), np.bool_)
        if self._array.device.type == "cpu":
            found = corner[torch.from_numpy(slots)]
        else:
            with torch.cuda.device(self._array.device):
                there = corner[torch.from_numpy(slots).to(self._array.device)]
                found = torch.empty(there.shape, dtype=torch.uint8, pin_memory=True).copy_(there, non_blocking=True)
        mark = self._mark

        def marked() -> Flags:
            flags: Flags = (found == mark).all(dim=1).numpy()
            return flags

        return marked

    def _corner(self) -> torch.Tensor | None:
        """A view of the first bytes of every slot, (slots, MARK_BYTES) uint8; None where they are not contiguous."""
        layout = self._array.layout
        part, length = layout.parts[0], layout.item_bytes
        for stride, size in sorted(zip(part.strides, part.shape, strict=True)):
            if stride == length:
                length *= size
        if length < MARK_BYTES:
            return None
        segment = self._array.segments[part.segment]
        start = segment.storage_offset() + part.offset
        return segment.as_strided((layout.slots, MARK_BYTES), (part.slot_stride, 1), start)
