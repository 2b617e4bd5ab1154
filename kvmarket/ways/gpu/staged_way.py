"""A way for packed slots that pays for long fetches: the copy engine fills a ring of buffers, a kernel scatters each.

It has the highest rate when several fetches are under way. For a single fetch a pull is faster on NVLink: here the copy
engine pauses between chunks, a thread has to launch them, and nothing hides the last scatter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from kvmarket import counters
from kvmarket.kernels import prepare
from kvmarket.kernels.addresses.tables import Table, table_of
from kvmarket.kernels.scatter import scatter_launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.choice import Candidate, Case
from kvmarket.ways.copying import Copy, Int64s
from kvmarket.ways.gpu import copy_engine
from kvmarket.ways.gpu.copy_way import addresses, merged
from kvmarket.ways.gpu.measured import h200
from kvmarket.ways.gpu.sums import Sums
from kvmarket.ways.way import Maker, Means, Way

CHUNK_BYTES = 64 << 20  # the copy engine pauses some us between chunks: 3 % of the time of a chunk of this size
BUFFERS = 3  # one is filled, one is scattered, one waits
LAST_BYTES = 32 << 20  # least size of the last chunks, whose scatter nothing hides; smaller ones cost more CPU time
PROGRAMS = 64  # of a scatter: with so many it is at least twice as fast as the link
RING_SECONDS = 10.0  # until the ring is tried again after there was no memory for it


class StagedWay(Way):
    """Copies through a ring of buffers, which the first copy of this way allocates."""

    candidate = Candidate("staged")
    rates = (
        *h200("staged", 65536, {16: 67, 64: 155, 256: 260, 1024: 319}),
        *h200("staged", 65536, {16: 31, 64: 76, 256: 201, 1024: 368}, busy=True),
    )
    cases = (Case("staged", 65536, packed_source=True, packed_own=False),)

    def __init__(self, means: Means) -> None:
        self._means = means
        self._ring: Ring | None = None
        self._ring_at = 0.0  # when it may be allocated, by time.monotonic()

    @classmethod
    def available(cls) -> bool:
        """Whether the driver copies many ranges in one call."""
        return copy_engine.takes_batches()

    def prepare(self, source: SlotArray) -> Maker | None:
        """Return what makes the jobs; None unless the source is packed."""
        return self._job if source.layout.packed else None

    def takes(self, copy: Copy, table: Table) -> bool:
        """Whether there is a ring, or one may be allocated. False where `CopyWay` can copy without a ring."""
        return (table.count > 1 or copy.summed) and (self._ring is not None or time.monotonic() >= self._ring_at)

    def _job(self, copy: Copy) -> StagedJob | None:
        ring = self._ring or self._new_ring()
        return StagedJob(self._means, ring, copy) if ring else None

    def _new_ring(self) -> Ring | None:
        """Allocate the ring.

        Without memory for it, count that and return None: packed slots are then pulled for `RING_SECONDS`.
        """
        try:
            self._ring = Ring(self._means.own, self._means.streams[1])
        except RuntimeError as error:
            self._ring_at = time.monotonic() + RING_SECONDS
            counters.add("staged_unavailable", reason="there is no memory for its buffers", detail=error)
        return self._ring


class Ring:
    """`BUFFERS` buffers for chunks in packed layout, on the device of ``own``, used in turn. It owns their memory."""

    def __init__(self, own: SlotArray, filling: torch.cuda.Stream) -> None:
        slots = max(1, CHUNK_BYTES // own.layout.slot_bytes)
        layout = own.layout.as_packed(slots)
        self.slots = slots
        self.buffers = [
            SlotArray(layout, [torch.empty(layout.segments[0], dtype=torch.uint8, device=own.device)])
            for _ in range(BUFFERS)
        ]
        for buffer in self.buffers:
            prepare(buffer, own)
        self.order = torch.arange(slots, device=own.device)
        self.filled = [torch.cuda.Event() for _ in self.buffers]
        self.free = [torch.cuda.Event() for _ in self.buffers]
        self.turn = 0
        filling.wait_stream(torch.cuda.current_stream())  # work on that stream may still use this memory, freed before


class StagedJob:
    """One staged copy, ready to be launched. Launching takes as long as copying, so the mover's thread does it."""

    threaded = True

    def __init__(self, means: Means, ring: Ring, copy: Copy) -> None:
        own = means.own
        self._copy, self._own, self._ring = copy, own, ring
        self._programs = means.programs or PROGRAMS
        self._scattering, self._filling = means.streams[0], means.streams[1]
        self._sums = Sums(len(copy.slots), own.device) if copy.summed else None
        self._slots = torch.from_numpy(copy.slots).pin_memory()
        self._places = torch.empty_like(self._slots, device=own.device)

    def launch(self) -> None:
        """Launch all chunks. Later work on the first stream waits for all of them.

        Filling a buffer touches no memory of the caller, so it need not wait for the caller's stream. A scatter must.
        """
        ring, size = self._ring, self._own.layout.slot_bytes
        fill, stream = self._filling, self._scattering.cuda_stream
        source, stride = table_of(self._copy.source, ring.buffers[0]).first[:2]
        sources = addresses(source, stride, self._copy.source_slots)
        copy_engine.copy_range(self._places.data_ptr(), self._slots.data_ptr(), self._slots.nbytes, stream)
        if self._sums:
            self._sums.zero(stream)
        for start, end in chunks(len(sources), ring.slots, max(1, LAST_BYTES // size)):
            turn, ring.turn = ring.turn, (ring.turn + 1) % BUFFERS
            buffer = ring.buffers[turn]
            fill.wait_event(ring.free[turn])  # an event that was never recorded does not wait
            into = addresses(buffer.addresses()[0], size, np.arange(end - start))
            copy_engine.copy_ranges(*merged(into, sources[start:end], size), fill.cuda_stream)
            ring.filled[turn].record(fill)
            self._scattering.wait_event(ring.filled[turn])
            scatter_launcher(buffer, self._own)(
                ring.order[: end - start],
                self._places[start:end],
                end - start,
                self._programs,
                self._sums.device[start:end] if self._sums else None,
                stream,
            )
            ring.free[turn].record(self._scattering)
        if self._sums:
            self._sums.bring(stream)

    def finish(self) -> Int64s | None:
        """Return the sums of the blocks, if the copy was summed, else None. Call it when the copy is done."""
        return self._sums.found() if self._sums else None


def chunks(blocks: int, most: int, smallest: int) -> Iterator[tuple[int, int]]:
    """Cut ``blocks`` blocks into chunks (start, end) of at most ``most`` blocks.

    The final chunks get smaller, down to ``smallest``, so that less is left to scatter after the last copy. Where the
    blocks do not divide, the last chunk is smaller still.
    """
    start = 0
    while start < blocks:
        left = blocks - start
        size = min(most, left) if left > most or left <= smallest else max(smallest, left // 2)
        yield start, start + size
        start += size
