"""The sums of a copy's blocks: added up on the device, brought to the host behind it."""

from __future__ import annotations

import torch

from kvmarket.ways.copying import Int64s
from kvmarket.ways.gpu import copy_engine


class Sums:
    """One int64 per block on the device, and pinned memory of the host, which has them once ``bring`` is done."""

    def __init__(self, blocks: int, device: torch.device) -> None:
        self.device = torch.empty(blocks, dtype=torch.int64, device=device)
        self._host = torch.empty(blocks, dtype=torch.int64, pin_memory=True)

    def zero(self, stream: int) -> None:
        """Zero them on the raw ``stream``."""
        copy_engine.fill_zero(self.device.data_ptr(), self.device.nbytes, stream)

    def bring(self, stream: int) -> None:
        """Copy them to the host on the raw ``stream``."""
        copy_engine.copy_range(self._host.data_ptr(), self.device.data_ptr(), self.device.nbytes, stream)

    def found(self) -> Int64s:
        """What was brought."""
        sums: Int64s = self._host.numpy()
        return sums
