"""The way of most fetches: one kernel on the reader reads the owner's slots over the link and writes our own."""

from __future__ import annotations

import numpy as np
import torch

from kvmarket.kernels.pull import PROGRAMS, SUMMING_PROGRAMS
from kvmarket.kernels.tile import PER_BLOCK, PER_UNIT, Launcher
from kvmarket.layout import SlotArray
from kvmarket.ways import copy_engine
from kvmarket.ways.copying import Copy, Int64s
from kvmarket.ways.sums import Sums

SHORT = 8 << 20  # bytes: a pull of so few takes as many SMs as it can, for some us
FEW = 64  # blocks: so few ids the kernel reads from host memory, which saves a copy ahead of it
UNITS = 4096  # so many sums it writes to host memory, which saves zeroing some ahead of it and a copy behind it


class Room:
    """Pinned host memory in which a short pull has its ids and leaves its sums; used again when it is done."""

    def __init__(self) -> None:
        host = torch.empty(2 * FEW + UNITS, dtype=torch.int64, pin_memory=True)
        self.source_slots, self.slots, self.sums = (part.data_ptr() for part in host.split([FEW, FEW, UNITS]))
        self.ids, self.found = host[: 2 * FEW].view(2, FEW).numpy(), host[2 * FEW :].numpy()  # they keep it alive


class PullJob:
    """A pull, ready to be launched. Ids and sums live as long as it does."""

    threaded = False

    def __init__(
        self,
        copy: Copy,
        own: SlotArray,
        run: Launcher,
        stream: torch.cuda.Stream,
        programs: int | None,
        rooms: list[Room],
    ) -> None:
        """``run`` pulls from this source. ``rooms`` are free: it takes one or makes one, and gives it back at the end.

        A copy that is ``summed`` must be one that can be.
        """
        self._run, self._stream, self._programs = run, stream.cuda_stream, programs
        self._blocks = blocks = len(copy.slots)
        if programs is None and blocks * own.layout.slot_bytes > SHORT:
            self._programs = SUMMING_PROGRAMS if copy.summed else PROGRAMS
        self._rooms, self._room = rooms, _take(rooms) if blocks <= FEW else None
        self._kind, self._sums = PER_BLOCK, None
        self._total: int | None = None
        self._found: Int64s | None = None
        if self._room is None:
            self._host = torch.empty((2, blocks), dtype=torch.int64, pin_memory=True)
            ids = self._host.numpy()
            self._ids = torch.empty((2, blocks), dtype=torch.int64, device=own.device)
            self._source_slots, self._slots = (row.data_ptr() for row in self._ids)
        else:
            ids = self._room.ids
            self._source_slots, self._slots = self._room.source_slots, self._room.slots
        ids[0, :blocks], ids[1, :blocks] = copy.source_slots, copy.slots
        if copy.summed and self._room and blocks * run.units <= UNITS:
            self._kind, self._total = PER_UNIT, self._room.sums
        elif copy.summed:
            self._sums = Sums(blocks, own.device)
            self._total = self._sums.device.data_ptr()

    def launch(self) -> None:
        """Launch it."""
        stream, sums = self._stream, self._sums
        if self._room is None:
            copy_engine.copy_range(self._ids.data_ptr(), self._host.data_ptr(), self._host.nbytes, stream)
        if sums:
            sums.zero(stream)
        self._run(self._source_slots, self._slots, self._blocks, self._programs, self._total, stream, self._kind)
        if sums:
            sums.bring(stream)

    def finish(self) -> Int64s | None:
        """It is done: the sums of its blocks, if it was summed. Its room is another's from now on."""
        room, self._room = self._room, None  # given back once, whatever interrupts this
        if room:
            if self._kind == PER_UNIT:
                shape = self._blocks, self._run.units
                self._found = np.add.reduce(room.found[: shape[0] * shape[1]].reshape(shape), axis=1)
            self._rooms.append(room)
        return self._sums.found() if self._sums else self._found


def _take(rooms: list[Room]) -> Room:
    try:
        return rooms.pop()  # atomic: no two pulls take the same
    except IndexError:
        return Room()
