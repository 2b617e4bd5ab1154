"""A segment: a part of a lender's memory that is one pool, and is taken back as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import torch

from kvmarket.layout.packed import PackedMemory
from kvmarket.market.data import DataHalf
from kvmarket.market.fetch import Fetch
from kvmarket.market.mappings import register_own, unregister_own
from kvmarket.market.offer import Hit, Stage
from kvmarket.market.own_pool import OwnPool
from kvmarket.pool import Slots
from kvmarket.transport import HostMemory


def block_bytes(stages: Sequence[Stage]) -> int:
    """Bytes of one block, over all ranks of `stages`."""
    return sum(stage.layout.slot_bytes * len(stage.ranks) for stage in stages)


class Segment:
    """Packed slots for blocks of engines that have the same stages and ranks. Owns their memory. Not thread-safe."""

    def __init__(
        self,
        stages: Sequence[Stage],
        nbytes: int,
        device: torch.device,
        on_unreachable: Callable[[str], None],
        on_scarce: Callable[[str], None],
        *,
        far: bool = False,
    ) -> None:
        """Allocate up to `nbytes`, which must have room for a block, on `device`, as a pool that has not joined yet.

        `self.nbytes` is what it takes of a budget: `nbytes`, less than a block more than its memory.

        `far`: in the host's memory, locked for `device`, which is a GPU.
        `stages`: of any of the engines. For the callbacks see `DataHalf`. Raises TransportError if the memory cannot be
        shared, and torch's RuntimeError if there is none.
        """
        self.device, self.nbytes = device, nbytes
        self.slots = nbytes // block_bytes(stages)
        self._halves: list[DataHalf] = []
        mine: list[Stage] = []
        with ExitStack() as undo:
            undo.callback(self._close_halves)
            for stage in stages:
                layout, first = stage.layout.as_packed(self.slots), len(self._halves)
                for rank in range(first, first + len(stage.ranks)):
                    place, named = HostMemory.allocate(layout.segments[0], device) if far else (None, None)
                    memory = PackedMemory(layout, device, place)
                    self._halves.append(DataHalf(memory, rank, on_unreachable, on_scarce=on_scarce, memory=named))
                mine.append(Stage(layout, tuple(half.memory for half in self._halves[first:])))
            self.pool = OwnPool(mine, lent=True, far=far)
            for rank, half in enumerate(self._halves):
                register_own(self.pool.id, half.slots, rank)
            undo.pop_all()
        self._free = list(range(self.slots - 1, -1, -1))

    def take(self, most: int) -> Slots:
        """Take up to `most` free slots, in ascending order where that is possible."""
        taken = [self._free.pop() for _ in range(min(most, len(self._free)))]
        return np.array(taken, np.int64)

    def free(self, slots: Iterable[int]) -> None:
        """Give slots back, whose offers are dead and into which nothing is copied any more."""
        self._free += slots

    def fetch(self, hit: Hit, slots: Slots, first: int) -> list[Fetch]:
        """Copy blocks `first` ... of `hit` into these slots, of every rank. Raises and costs what `DataHalf.fetch`."""
        return [half.fetch(hit, slots, first) for half in self._halves]

    def forget(self, pools: Sequence[str]) -> None:
        """Drop the mappings of pools that have left."""
        for half in self._halves:
            half.forget(pools)

    def close(self) -> None:
        """Wait for the copies under way and free the memory. The pool must be closed: `MarketMember` does that."""
        for rank in range(len(self._halves)):
            unregister_own(self.pool.id, rank)
        self._close_halves()
        self._halves.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _close_halves(self) -> None:
        for half in self._halves:
            half.close()
