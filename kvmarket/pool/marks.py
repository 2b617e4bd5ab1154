"""Marks: bytes that are put into a slot which holds no block, so that it is seen whether it was written since.

A block that is computed overwrites all bytes of its slot, by whatever kernel. So a slot that still has its mark holds
nothing of meaning. Whoever reads it beside others and masks it out may do so: it holds small numbers.
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
SMALL = 0x3F  # bits of each byte that are random: as elements of any float type they are numbers below 2, never NaN


class Marks:
    """Puts marks into the slots of one memory, and looks for them. Thread-safe."""

    def __init__(self, array: SlotArray) -> None:
        """Of the slots of `array`; costs nothing yet."""
        self._array = array
        self._mark = torch.frombuffer(bytearray(each & SMALL for each in os.urandom(MARK_BYTES)), dtype=torch.uint8)
        self._stream: torch.cuda.Stream | None = None

    def put(self, slots: Slots) -> bool:
        """Mark `slots`; whether that can be done: a slot that begins with a shorter range of bytes bears no mark.

        The marks are there when this returns. Costs some us, on a GPU some 50.
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
        """Look which of `slots` have their mark, behind what the current stream holds now.

        What is returned tells, once the stream has passed this call; on a CPU at once.
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
        """The first bytes of every slot's first part, (slots, MARK_BYTES); None where they are not one range."""
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
