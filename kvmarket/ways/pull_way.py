"""The way of most fetches: one kernel on the reader reads the owner's slots over the link and writes our own."""

from __future__ import annotations

import numpy as np
import torch

from kvmarket.kernels.tile import PER_BLOCK, PER_UNIT, Launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.ways import buffers
from kvmarket.ways.buffers import Buffer, Buffers, LongBuffer
from kvmarket.ways.copying import Copy, Int64s

SHORT = 8 << 20  # bytes: a pull of so few takes as many SMs as it can, for some us


class PullJob:
    """A pull, ready to be launched. It has a buffer until it is done."""

    threaded = False

    def __init__(
        self,
        copy: Copy,
        own: SlotArray,
        run: Launcher,
        stream: torch.cuda.Stream,
        programs: int | None,
        free: Buffers,
    ) -> None:
        """``run`` pulls from this source. ``free``: it takes a buffer of these, and gives it back at the end.

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
        buffer = free.short() if short else free.long(blocks)
        self._buffer: Buffer | LongBuffer | None = buffer
        buffer.ids[:blocks], buffer.ids[blocks : 2 * blocks] = copy.source_slots, copy.slots

    def launch(self) -> None:
        """Launch it."""
        buffer, stream, blocks, kind = self._buffer, self._stream, self._blocks, PER_UNIT
        assert buffer is not None, "it is launched before it is done"
        if isinstance(buffer, LongBuffer):
            kind = PER_BLOCK
            buffer.bring_ids(blocks, stream)
            if self._summed:
                buffer.zero_sums(blocks, stream)
        ids, sums = buffer.source_slots, buffer.sums if self._summed else None
        self._run(ids, ids + 8 * blocks, blocks, self._programs, sums, stream, kind)
        if self._summed and isinstance(buffer, LongBuffer):
            buffer.bring_sums(blocks, stream)

    def finish(self) -> Int64s | None:
        """It is done: the sums of its blocks, if it was summed. Its buffer is another's from now on."""
        buffer, self._buffer = self._buffer, None  # given back once, whatever interrupts this
        if buffer is not None:
            if self._summed and isinstance(buffer, LongBuffer):
                self._found = buffer.found[: self._blocks].copy()
            elif self._summed:
                shape = self._blocks, self._run.units
                self._found = np.add.reduce(buffer.found[: shape[0] * shape[1]].reshape(shape), axis=1)
            self._free.give_back(buffer)
        return self._found
