"""The way of most fetches: one kernel on the reader reads the owner's slots over the link and writes our own."""

from __future__ import annotations

from contextlib import suppress

import torch

from kvmarket.kernels.pull import PROGRAMS, SUMMING_PROGRAMS, pull_launcher
from kvmarket.layout import SlotArray
from kvmarket.ways import copy_engine
from kvmarket.ways.copying import Copy
from kvmarket.ways.sums import sums_of

SHORT = 8 << 20  # bytes: a pull of so few takes as many SMs as it can, for some us
FEW = 16  # so few ids the kernel reads from host memory: that saves a copy


class FewIds:
    """Room in pinned host memory for the ids of a short pull, used again by another one when it is done."""

    def __init__(self) -> None:
        self.host = torch.empty((2, FEW), dtype=torch.int64, pin_memory=True)
        self.array = self.host.numpy()
        self.source_slots, self.slots = self.host.unbind()


class PullJob:
    """A pull, ready to be launched. Ids and sums live as long as it does."""

    threaded = False

    def __init__(
        self, copy: Copy, own: SlotArray, stream: torch.cuda.Stream, programs: int | None, few: list[FewIds]
    ) -> None:
        """`few`: room that is free. The pull takes some of it or makes more, and gives it back when released."""
        self._run = pull_launcher(copy.source, own)
        self._blocks = len(copy.slots)
        self._stream = stream.cuda_stream
        self.sums = sums_of(copy, own) if copy.summed else None
        self._programs = programs
        if programs is None and self._blocks * own.layout.slot_bytes > SHORT:
            self._programs = SUMMING_PROGRAMS if self.sums else PROGRAMS
        self._free, self._taken = few, list[FewIds]()
        if self._blocks <= FEW:
            ids = _take(few)
            self._taken.append(ids)
            ids.array[0, : self._blocks], ids.array[1, : self._blocks] = copy.source_slots, copy.slots
            self._source_slots, self._slots = ids.source_slots, ids.slots
        else:
            self._host = torch.empty((2, self._blocks), dtype=torch.int64, pin_memory=True)
            host = self._host.numpy()
            host[0], host[1] = copy.source_slots, copy.slots
            self._ids = torch.empty((2, self._blocks), dtype=torch.int64, device=own.device)
            self._source_slots, self._slots = self._ids.unbind()

    def launch(self) -> None:
        """Launch it."""
        stream, sums = self._stream, self.sums
        if not self._taken:
            copy_engine.copy_range(self._ids.data_ptr(), self._host.data_ptr(), self._host.nbytes, stream)
        if sums:
            sums.zero(stream)
        total = sums.device if sums else None
        self._run(self._source_slots, self._slots, self._blocks, self._programs, total, stream)
        if sums:
            sums.bring(stream)

    def release(self) -> None:
        """It is done: others may use its room. May be called twice, and by two threads at once."""
        with suppress(IndexError):  # pop is atomic: nobody gives the same room back twice
            self._free.append(self._taken.pop())


def _take(few: list[FewIds]) -> FewIds:
    try:
        return few.pop()
    except IndexError:
        return FewIds()
