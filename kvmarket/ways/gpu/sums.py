"""The sums of a staged copy's blocks: added up on the device, then copied to the host."""

from __future__ import annotations

import torch

from kvmarket.ways.copying import Int64s
from kvmarket.ways.gpu import copy_engine


class Sums:
    """One int64 per block on the device, and pinned host memory to which ``bring`` copies them."""

    def __init__(self, blocks: int, device: torch.device) -> None:
        self.device = torch.empty(blocks, dtype=torch.int64, device=device)
        self._host = torch.empty(blocks, dtype=torch.int64, pin_memory=True)

    def zero(self, stream: int) -> None:
        """Zero the sums on the device, on the raw ``stream``."""
        copy_engine.fill_zero(self.device.data_ptr(), self.device.nbytes, stream)

    def bring(self, stream: int) -> None:
        """Copy the sums to the host on the raw ``stream``; returns at once."""
        copy_engine.copy_range(self._host.data_ptr(), self.device.data_ptr(), self.device.nbytes, stream)

    def found(self) -> Int64s:
        """The sums on the host, (blocks,) int64; valid once the copy of ``bring`` is done."""
        sums: Int64s = self._host.numpy()
        return sums
