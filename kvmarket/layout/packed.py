"""Memory for packed blocks, without an engine: what a lender keeps blocks of any geometry in."""

from __future__ import annotations

import torch

from kvmarket.layout.layout import Layout
from kvmarket.layout.paged import SlotArray


class PackedMemory:
    """One allocation of packed slots on `device`. Owns the memory."""

    def __init__(self, layout: Layout, device: torch.device, segment: torch.Tensor | None = None) -> None:
        """Allocate for `layout`, which is packed (see `Layout.as_packed`). Raises torch's errors without memory.

        `segment`: memory that is there already, 1-D uint8 on `device`.
        """
        self.layout, self.device = layout, device
        self._segment = (
            torch.empty(layout.segments[0], dtype=torch.uint8, device=device) if segment is None else segment
        )
        self._array: SlotArray | None = None

    def storages(self) -> list[torch.UntypedStorage]:
        """The storage, which a transport exports; on a CPU it moves into shared memory then."""
        return [self._segment.untyped_storage()]

    def slot_array(self) -> SlotArray:
        """The memory as a SlotArray. Call it when the storage has been exported, not before."""
        if self._array is None:
            self._array = SlotArray(self.layout, [self._segment])
        return self._array
