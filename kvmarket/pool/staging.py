"""A staging pool: packed slots on the cache's device. Blocks stay there after the engine has reused its own pages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from kvmarket.errors import LayoutError
from kvmarket.kernels import can_sum, checksum, copy_blocks, prepare
from kvmarket.layout.paged import PagedCache, SlotArray
from kvmarket.pool.slots import Slots, UInt64s
from kvmarket.transport import Memory, export


class StagingRing:
    """Hands out slots 0 .. slots - 1 in a circle, so the oldest blocks are evicted first.

    It only counts: the caller raises generations and writes bytes.
    """

    def __init__(self, slots: int) -> None:
        """A ring over `slots` slots."""
        self.slots = slots
        self._next = 0

    def take(self, n: int) -> Slots:
        """The next min(n, slots) slots, always consecutive: if they do not fit before the end, starts again at slot 0.

        The caller must raise their generations before it writes to them.
        """
        n = min(n, self.slots)
        if self._next + n > self.slots:
            self._next = 0
        taken = np.arange(self._next, self._next + n)
        self._next = (self._next + n) % self.slots
        return taken


class Packed(NamedTuple):
    """A pack under way on a stream. When it is done, `sums` are valid; keep this object alive until then."""

    sums: torch.Tensor | None
    keep: tuple[torch.Tensor, ...]

    def checksums(self) -> UInt64s | None:
        """The checksums of the blocks; call it when the pack is done. None where they were not computed."""
        return None if self.sums is None else checksum.finish(self.sums)


class StagingPool:
    """Memory for `nbytes` // slot_bytes packed blocks, exported once and filled in a circle. Owns the memory."""

    def __init__(self, cache: PagedCache, nbytes: int) -> None:
        """Allocate on the cache's device.

        Raises LayoutError if not even one block fits, TransportError if it cannot be exported.
        """
        count = nbytes // cache.slot_bytes
        if count < 1:
            raise LayoutError(
                f"staging_bytes={nbytes} is less than a block; give at least {cache.slot_bytes}, or 0 for none"
            )
        layout = cache.layout.as_packed(count)
        segment = torch.empty(layout.segments[0], dtype=torch.uint8, device=cache.device)
        self.memory: Memory = export([segment.untyped_storage()])
        self.slots = SlotArray(layout, [segment])
        self.ring = StagingRing(count)
        self._packed: torch.cuda.Event | None = None
        if cache.device.type == "cuda":
            prepare(cache.slot_array(), self.slots)

    def pack(self, source: SlotArray, slots: Slots, staged: Slots, *, summed: bool = True) -> Packed:
        """Pack `slots` of `source` into the slots `staged` on the current stream, with checksums if `summed`.

        Without checksums too where the arrays cannot be summed (see `can_sum`). On a GPU returns at once.
        """
        summed = summed and can_sum(source, self.slots)
        ids = torch.from_numpy(np.stack([slots, staged]))
        sums = torch.zeros(len(slots), dtype=torch.int64, device=source.device) if summed else None
        if source.device.type == "cpu":
            copy_blocks(source, ids[0], self.slots, ids[1], sums=sums)
            return Packed(sums, ())
        with torch.cuda.device(source.device):
            if self._packed is not None:  # an earlier pack, on whatever stream, must not write after this one
                torch.cuda.current_stream().wait_event(self._packed)
            ids = ids.pin_memory().to(source.device, non_blocking=True)
            copy_blocks(source, ids[0], self.slots, ids[1], sums=sums)
            self._packed = torch.cuda.Event()
            self._packed.record()
            if sums is None:
                return Packed(None, (ids,))
            host = torch.empty(len(slots), dtype=torch.int64, pin_memory=True)
            return Packed(host.copy_(sums, non_blocking=True), (ids, sums))
