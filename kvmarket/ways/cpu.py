"""The way of machines without GPUs: a thread copies from one mapping of shared memory to the other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from kvmarket.kernels import can_sum, copy_blocks
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.copying import Copy, Int64s, Started


class CpuMover:
    """Copies into the slots of ``own`` by one thread, in the order of the calls."""

    def __init__(self, own: SlotArray) -> None:
        self._own = own
        self._thread = ThreadPoolExecutor(1, "kvmarket-copy")

    def prepare(self, source: SlotArray, owner: str) -> None:
        """Nothing to do."""

    def start(self, copies: Sequence[Copy]) -> Started:
        """Queue the copies."""
        future = self._thread.submit(self._copy, list(copies))
        return Started(future.done, future.result, None)

    def describe(self) -> str:
        """There is one way."""
        return "shm (shared memory, no GPU)"

    def close(self) -> None:
        """Wait for the copies under way."""
        self._thread.shutdown(wait=True)

    def _copy(self, copies: list[Copy]) -> list[Int64s | None]:
        found: list[Int64s | None] = []
        for copy in copies:
            summed = copy.summed and can_sum(copy.source, self._own)
            sums = torch.zeros(len(copy.slots), dtype=torch.int64) if summed else None
            ids = torch.from_numpy(copy.source_slots), torch.from_numpy(copy.slots)
            copy_blocks(copy.source, ids[0], self._own, ids[1], sums=sums)
            found.append(None if sums is None else sums.numpy())
        return found
