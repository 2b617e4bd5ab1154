"""The way of machines without GPUs: a thread copies from mapped shared memory to the engine's own memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from kvmarket.kernels import copy_blocks
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.choice import Candidate
from kvmarket.ways.copying import Copy, Int64s, Started
from kvmarket.ways.way import Job, Maker, Means, Way, Ways


class ShmWay(Way):
    """Copies from any slots that are mapped in this process."""

    candidate = Candidate("shm")

    def __init__(self, means: Means) -> None:
        self._own = means.own

    def prepare(self, source: SlotArray) -> Maker:
        """Return what makes the jobs; there is nothing to prepare."""
        return partial(ShmJob, self._own)


class ShmJob:
    """One copy by the CPU, ready to run."""

    threaded = True

    def __init__(self, own: SlotArray, copy: Copy) -> None:
        self._own, self._copy = own, copy
        self._sums = torch.zeros(len(copy.slots), dtype=torch.int64) if copy.summed else None

    def launch(self) -> None:
        """Copy the blocks, now."""
        copy = self._copy
        ids = torch.from_numpy(copy.source_slots), torch.from_numpy(copy.slots)
        copy_blocks(copy.source, ids[0], self._own, ids[1], sums=self._sums)

    def finish(self) -> Int64s | None:
        """Return the sums of the blocks, if the copy was summed, else None."""
        sums: Int64s | None = None if self._sums is None else self._sums.numpy()
        return sums


WAYS: list[type[Way]] = [ShmWay]  # one line a way; the first must take every copy


class CpuMover:
    """Copies into the slots of ``own`` by one thread, in the order of the calls."""

    def __init__(self, own: SlotArray) -> None:
        self.means = Means(own)
        self.ways = Ways(self.means, WAYS, idle=lambda: True)
        self.ways.prepare(own)
        self._thread = ThreadPoolExecutor(1, "kvmarket-copy")

    def prepare(self, source: SlotArray, owner: str) -> None:
        """Prepare the ways for copies from ``source``."""
        self.ways.prepare(source, owner)

    def start(self, copies: Sequence[Copy]) -> Started:
        """Queue the copies for the thread. Raises RuntimeError after `close`."""
        future = self._thread.submit(_run, [self.ways.job(copy) for copy in copies])
        return Started(future.done, future.result, None)

    def describe(self) -> str:
        """Name the ways."""
        return f"{self.ways.describe()} (shared memory, no GPU)"

    def close(self) -> None:
        """Wait for the copies under way, and end the thread."""
        self._thread.shutdown(wait=True)


def _run(jobs: Sequence[Job]) -> list[Int64s | None]:
    for job in jobs:
        job.launch()
    return [job.finish() for job in jobs]
