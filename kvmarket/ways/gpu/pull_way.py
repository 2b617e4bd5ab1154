"""The way of most fetches: one kernel on the reader's GPU reads the owner's slots over the link and writes our own."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from triton.errors import TritonError

from kvmarket.kernels import can_sum
from kvmarket.kernels.pull import pull_launcher
from kvmarket.kernels.tile import PER_BLOCK, PER_UNIT, Launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.choice import Candidate, Case
from kvmarket.ways.copying import Copy, Int64s
from kvmarket.ways.gpu import buffers
from kvmarket.ways.gpu.buffers import Buffer, Buffers, LongBuffer
from kvmarket.ways.gpu.measured import h200
from kvmarket.ways.way import Maker, Means, Way

SHORT = 8 << 20  # bytes: a pull of up to so many uses as many SMs as it can, because it takes only some us


class PullWay(Way):
    """Pulls from slots of any layout to slots of any layout."""

    candidate = Candidate("pull")
    rates = (
        *h200("pull", 65536, {2: 37, 16: 177, 64: 259, 256: 333, 1024: 360}),
        *h200("pull", 65536, {16: 162, 64: 335, 256: 360, 1024: 370}, busy=True),
    )
    cases = (
        Case("pull", 65536, packed_source=False, packed_own=False),
        Case("pull", 4096, packed_source=False, packed_own=False),
    )

    def __init__(self, means: Means) -> None:
        self._means, self._free = means, Buffers(means.own.device)

    def prepare(self, source: SlotArray) -> Maker:
        """Compile the kernel, with sums and without. Raises RuntimeError where that fails."""
        own, stream = self._means.own, self._means.streams[0].cuda_stream
        run, none = pull_launcher(source, own), torch.empty(0, dtype=torch.int64, device=own.device)
        try:
            with torch.cuda.device(own.device):
                run(none, none, 0, 1, None, stream)
                for kind in (PER_BLOCK, PER_UNIT) if can_sum(source, own) else ():
                    run(none, none, 0, 1, none, stream, kind)
        except TritonError as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return partial(PullJob, self._means, run, self._free)


class PullJob:
    """One pull, ready to be launched. It holds a buffer until `finish`."""

    threaded = False

    def __init__(self, means: Means, run: Launcher, free: Buffers, copy: Copy) -> None:
        """``run`` launches the kernel for this source. The job takes a buffer from ``free`` and `finish` gives it back.

        If ``copy.summed``, the arrays must allow it (see `can_sum`).
        """
        own, programs = means.own, means.programs
        self._run, self._stream, self._programs = run, means.streams[0].cuda_stream, programs
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
        """Launch the pull on the first stream."""
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
        """Give the buffer back; return the sums of the blocks, if the copy was summed. The pull must be done."""
        buffer, self._buffer = self._buffer, None  # first, so that no interruption gives the buffer back twice
        if buffer is not None:
            if self._summed and isinstance(buffer, LongBuffer):
                self._found = buffer.found[: self._blocks].copy()
            elif self._summed:
                shape = self._blocks, self._run.units
                self._found = np.add.reduce(buffer.found[: shape[0] * shape[1]].reshape(shape), axis=1)
            self._free.give_back(buffer)
        return self._found
