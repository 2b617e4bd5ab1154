"""The way that takes no SM: slot to slot by the copy engine, where a slot is one contiguous range on both sides."""

from __future__ import annotations

from functools import partial

import numpy as np

from kvmarket.kernels.addresses.tables import Table, table_of
from kvmarket.layout.paged import SlotArray
from kvmarket.pool import Slots, UInt64s
from kvmarket.ways.choice import Candidate, Case
from kvmarket.ways.copying import Copy
from kvmarket.ways.gpu import copy_engine
from kvmarket.ways.gpu.measured import h200
from kvmarket.ways.way import Maker, Means, Way

INLINE_BLOCKS = 512  # with more, the mover's thread launches: a block costs the caller 0.5 us, the thread about 100 us
FEW = 4  # up to so many blocks are copied by one driver call each


class CopyWay(Way):
    """Copies slot to slot by the copy engine. It cannot sum: a copy that needs checksums takes another way."""

    candidate = Candidate("copy", sparing=True)
    rates = (
        *h200("copy", 2 << 20, {2: 40, 16: 130, 64: 252, 256: 336, 1024: 371}),
        *h200("copy", 2 << 20, {16: 76, 64: 284, 256: 391, 1024: 396}, busy=True),
    )
    cases = (Case("copy", 65536, packed_source=True, packed_own=True),)

    def __init__(self, means: Means) -> None:
        self._means = means

    @classmethod
    def available(cls) -> bool:
        """Whether the driver copies many ranges in one call."""
        return copy_engine.takes_batches()

    def prepare(self, source: SlotArray) -> Maker | None:
        """Return what makes the jobs; None unless a slot is one contiguous range in `source` and in our own array."""
        return partial(CopyJob, self._means) if table_of(source, self._means.own).count == 1 else None

    def takes(self, copy: Copy, table: Table) -> bool:
        """Whether `copy` needs no checksums."""
        return not copy.summed


class CopyJob:
    """One copy by the copy engine, ready to be launched on several streams. It has no checksums."""

    def __init__(self, means: Means, copy: Copy) -> None:
        self._copy, self._own, self._streams = copy, means.own, means.streams
        self.threaded = len(copy.slots) > INLINE_BLOCKS

    def launch(self) -> None:
        """Launch the copy. Later work on the first stream waits for all of it. Raises TransportError."""
        source, stride, destination, own_stride, _ = table_of(self._copy.source, self._own).first
        main, size = self._streams[0], self._own.layout.slot_bytes
        if len(self._copy.slots) <= FEW:
            for slot, own_slot in zip(self._copy.source_slots.tolist(), self._copy.slots.tolist(), strict=True):
                to, of = destination + own_slot * own_stride, source + slot * stride
                copy_engine.copy_range(to, of, size, main.cuda_stream)
            return
        targets = addresses(destination, own_stride, self._copy.slots)
        ranges = merged(targets, addresses(source, stride, self._copy.source_slots), size)
        hands = min(len(ranges[2]), len(self._streams))
        dealt = [(self._streams[hand], [each[hand::hands] for each in ranges]) for hand in range(hands)]
        for stream, _ in dealt[1:] if not copy_engine.idle(main.cuda_stream) else []:
            stream.wait_stream(main)
        for stream, (destinations, sources, sizes) in dealt:
            copy_engine.copy_ranges(destinations, sources, sizes, stream.cuda_stream)
        for stream, _ in dealt[1:]:
            main.wait_stream(stream)

    def finish(self) -> None:
        """Return None: there are no sums."""


def addresses(base: int, stride: int, slots: Slots) -> UInt64s:
    """The addresses of slots that lie ``stride`` bytes apart, with slot 0 at ``base``."""
    places: UInt64s = np.uint64(base) + slots.astype(np.uint64) * np.uint64(stride)
    return places


def merged(destinations: UInt64s, sources: UInt64s, size: int) -> tuple[UInt64s, UInt64s, UInt64s]:
    """Ranges to copy for blocks of ``size`` bytes: arrays of destinations, sources and lengths in bytes.

    Blocks that are adjacent on both sides become one range.
    """
    step = np.uint64(size)
    goes_on = (destinations[1:] - destinations[:-1] == step) & (sources[1:] - sources[:-1] == step)
    heads = np.flatnonzero(np.concatenate([np.ones(min(1, len(sources)), np.bool_), ~goes_on]))
    sizes = np.diff(heads, append=len(sources)).astype(np.uint64) * step
    return destinations[heads], sources[heads], sizes
