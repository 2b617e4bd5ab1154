"""The way of long fetches from packed slots: the copy engine fills a ring of buffers, a kernel scatters behind it.

With several fetches under way it has the highest rate. One alone is pulled sooner on NVLink: a chunk starts some us
after the one before, a thread launches them, and nothing hides the last scatter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from kvmarket.kernels import prepare
from kvmarket.kernels.addresses.tables import table_of
from kvmarket.kernels.scatter import scatter_launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.ways import copy_engine
from kvmarket.ways.copy_way import addresses, merged
from kvmarket.ways.copying import Copy, Int64s
from kvmarket.ways.sums import Sums

CHUNK_BYTES = 64 << 20  # the copy engine pauses some us between chunks: 3 % of what it takes for one of these
BUFFERS = 3  # one is filled, one is scattered, one waits
LAST_BYTES = 32 << 20  # what is left to be scattered when the last byte has come: less takes more chunks, each CPU time
PROGRAMS = 64  # of a scatter: at least twice as fast as the link


class Ring:
    """Buffers for chunks in packed layout, on the device of ``own``, allocated here and kept; used in turn."""

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
        filling.wait_stream(torch.cuda.current_stream())  # the memory may have been freed by work still on it


class StagedJob:
    """Chunks, ready to be launched. Launching takes as long as copying: a thread does it."""

    threaded = True

    def __init__(
        self, copy: Copy, own: SlotArray, streams: Sequence[torch.cuda.Stream], ring: Ring, programs: int | None
    ) -> None:
        self._copy, self._own, self._ring = copy, own, ring
        self._programs = programs or PROGRAMS
        self._scattering, self._filling = streams[0], streams[1]
        self._sums = Sums(len(copy.slots), own.device) if copy.summed else None
        self._slots = torch.from_numpy(copy.slots).pin_memory()
        self._places = torch.empty_like(self._slots, device=own.device)

    def launch(self) -> None:
        """Launch all chunks; the first stream has all of them behind it then.

        Filling a buffer touches nothing of the caller's: it may run ahead of his stream, a scatter may not.
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
            fill.wait_event(ring.free[turn])  # no wait at all where it was never recorded
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
        """It is done: the sums of its blocks, if it was summed."""
        return self._sums.found() if self._sums else None


def chunks(blocks: int, most: int, last: int) -> Iterator[tuple[int, int]]:
    """Cut ``blocks`` blocks into (start, end) of at most ``most`` each; the last ones are halved down to ``last``.

    What the last chunk takes to be scattered, nothing hides.
    """
    start = 0
    while start < blocks:
        left = blocks - start
        size = min(most, left) if left > most or left <= last else max(last, left // 2)
        yield start, start + size
        start += size
