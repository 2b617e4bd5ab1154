"""The way of most fetches: one kernel on the reader reads the owner's slots over the link and writes our own."""

from __future__ import annotations

import numpy as np
import torch

from kvmarket.kernels.tile import PER_BLOCK, PER_UNIT, Launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.ways import buffers
from kvmarket.ways.buffers import LongRoom, Room, Rooms
from kvmarket.ways.copying import Copy, Int64s

SHORT = 8 << 20  # bytes: a pull of so few takes as many SMs as it can, for some us


class PullJob:
    """A pull, ready to be launched. It has a room until it is done."""

    threaded = False

    def __init__(
        self,
        copy: Copy,
        own: SlotArray,
        run: Launcher,
        stream: torch.cuda.Stream,
        programs: int | None,
        free: Rooms,
    ) -> None:
        """``run`` pulls from this source. ``free``: it takes a room of these, and gives it back at the end.

        A copy that is ``summed`` must be one that can be.
        """
        self._run, self._stream, self._programs = run, stream.cuda_stream, programs
        self._blocks = blocks = len(copy.slots)
        if programs is None and blocks * own.layout.slot_bytes > SHORT:
            self._programs = run.enough(summed=copy.summed)
        self._free, self._summed = free, copy.summed
        self._found: Int64s | None = None
        few = buffers.MANY if own.layout.slot_bytes >= buffers.WIDE * run.units else buffers.FEW
        short = blocks <= few and not (copy.summed and blocks * run.units > buffers.UNITS)
        room = free.short() if short else free.long(blocks)
        self._room: Room | LongRoom | None = room
        room.ids[:blocks], room.ids[blocks : 2 * blocks] = copy.source_slots, copy.slots

    def launch(self) -> None:
        """Launch it."""
        room, stream, blocks, kind = self._room, self._stream, self._blocks, PER_UNIT
        assert room is not None, "it is launched before it is done"
        if isinstance(room, LongRoom):
            kind = PER_BLOCK
            room.bring_ids(blocks, stream)
            if self._summed:
                room.zero_sums(blocks, stream)
        ids, sums = room.source_slots, room.sums if self._summed else None
        self._run(ids, ids + 8 * blocks, blocks, self._programs, sums, stream, kind)
        if self._summed and isinstance(room, LongRoom):
            room.bring_sums(blocks, stream)

    def finish(self) -> Int64s | None:
        """It is done: the sums of its blocks, if it was summed. Its room is another's from now on."""
        room, self._room = self._room, None  # given back once, whatever interrupts this
        if room is not None:
            if self._summed and isinstance(room, LongRoom):
                self._found = room.found[: self._blocks].copy()
            elif self._summed:
                shape = self._blocks, self._run.units
                self._found = np.add.reduce(room.found[: shape[0] * shape[1]].reshape(shape), axis=1)
            self._free.give_back(room)
        return self._found
