"""The data half of a market: pools, mappings, copies. It knows no tokens, so a worker can hold it."""

from __future__ import annotations

import operator
import os
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from kvmarket import counters
from kvmarket.errors import ClosedError, SlotError
from kvmarket.layout.packed import PackedMemory
from kvmarket.layout.paged import PagedCache
from kvmarket.market.fetch import Fetch, Piece
from kvmarket.market.mappings import MappedPool, Mappings
from kvmarket.market.offer import Hit, Offers, PoolDescriptor
from kvmarket.pool import Slots, as_slots
from kvmarket.pool.landings import Landing
from kvmarket.support.flags import leading
from kvmarket.support.sets import common
from kvmarket.transport import Memory, export
from kvmarket.ways import FAILURES, Copy, Started
from kvmarket.ways.movers import mover_of


class DataHalf:
    """Exports one engine's cache, maps other engines' pools once each, and copies blocks out of them.

    Thread-safe.
    """

    def __init__(
        self,
        cache: PagedCache | PackedMemory,
        rank: int = 0,
        on_unreachable: Callable[[str], None] | None = None,
        programs: int | None = None,
        on_scarce: Callable[[str], None] | None = None,
        memory: Memory | None = None,
        look_seconds: float = 0.0,
    ) -> None:
        """Export `cache` (CPU tensors are moved into shared memory in place), unless it is shared as `memory` already.

        `rank`: which rank's memory to map, of a pool with several ranks.

        `on_unreachable` is called with each pool that this process cannot map, `on_scarce` with each pool that it could
        not map because descriptors or memory ran out, and will try again. `programs` bounds the programs of a fetch
        that run at a time, and so the SMs. `look_seconds`: how often a thread looks by itself whether lenders have
        taken memory back that is mapped here; 0, never, where `forget` is called as soon as a pool leaves. Raises
        TransportError.
        """
        self.cache = cache
        self.memory: Memory = memory or export(cache.storages())
        self.slots = cache.slot_array()
        self._rank, self._pid = rank, os.getpid()
        self._launching = threading.Lock()  # fetches into one slot are launched in the order in which they retired it
        self.mover = mover_of(self.slots, programs)
        self.mappings = Mappings(cache.device, rank, self.mover, on_unreachable, on_scarce, look_seconds)

    def fetch(self, hit: Hit, block_ids: Sequence[int] | Slots, first: int = 0) -> Fetch:
        """Copy blocks `first` .. `first + len(block_ids)` of `hit` into these slots of the cache; returns at once.

        The copy waits for the work on the current stream, and runs on its own stream. The caller must have retired the
        slots, and must not read or write them until `done()`. Never raises because a peer changed its mind or died:
        then fewer blocks are valid. Raises SlotError, before anything is launched, if `first` or the number of ids does
        not fit the hit; whether ids are in range is not checked. Costs about 50 us, and the mapping of a pool seen for
        the first time.
        """
        ids = as_slots(block_ids)
        self.check(hit, len(ids), first)
        return self.start(hit, ids, first)

    def start(self, hit: Hit, ids: Slots, first: int = 0, begin: Callable[[], Landing] | None = None) -> Fetch:
        """As `fetch`, for slots and a hit that were checked. Keeps `ids`: do not write to them any more.

        `begin`, if given, must retire the slots and return their Landing. It is called right before the launch, after
        all slow work such as mapping.
        """
        begun = time.perf_counter()
        sources = self._sources(hit.part(first, len(ids)), hit)
        with self._launching:
            landing = begin() if begin is not None else None
            pieces, copies, at = [], [], 0
            for mapped, run in sources:
                live = leading(Piece(mapped.generations, run).standing())
                if live:
                    offers = run.part(0, live)
                    pieces.append(Piece(mapped.generations, offers, mapped.lent))
                    copies.append(Copy(mapped.slots, offers.slots, ids[at : at + live], offers.checksums is not None))
                at += live
                if live < len(run):
                    counters.add("fetch_cut", reason="a block was retired before it could be fetched")
                    break
            started: Started | None = None
            try:
                started = self.mover.start(copies)
            except FAILURES as error:  # out of memory, say; no byte of this copy will be written any more
                reason = f"the copy could not be launched: {type(error).__name__}"
                counters.add("fetch_failed", reason=reason, detail=error)
            fetch = Fetch(len(ids), pieces, started, self.slots.layout.slot_bytes, begun, landing)
            self.mappings.keep(fetch, ids)
        return fetch

    def map_ahead(self, pools: Sequence[PoolDescriptor]) -> None:
        """Begin to map those of these pools whose memory takes long to map, so that a fetch finds that done."""
        for pool in filter(self._fits, pools):
            self.mappings.ahead(pool)

    def settle(self) -> None:
        """Conclude the fetches that are done. Costs a few us; nothing if no fetch is under way."""
        self.mappings.landing()

    def check_landed(self, block_ids: Slots) -> None:
        """Raise SlotError if a fetch into one of these slots is still under way: its block cannot be published yet."""
        under_way = self.mappings.landing()
        if not under_way:
            return
        for slot in common(np.concatenate(under_way), block_ids):
            raise SlotError(f"block id {slot} is still being fetched; call wait() on that fetch before you publish it")

    def forget(self, pools: Sequence[str]) -> None:
        """Drop the mappings of these pools, which have left. A copy under way keeps its mapping until it is done."""
        self.mappings.forget(pools)

    def close(self) -> None:
        """Wait for the copies under way, then drop every mapping. May be called twice."""
        self.mappings.close_watch()
        self.mover.close()
        self.mappings.close()

    def check(self, hit: Hit, count: int, first: int) -> None:
        """Raise SlotError unless `hit` has `count` blocks from block `first` on, and a geometry that fits ours.

        Raises ClosedError in a fork of the process that made this data half.
        """
        if self._pid != os.getpid():
            raise ClosedError(f"this market belongs to process {self._pid}, which forked; connect in this process")
        try:
            operator.index(first)
        except TypeError as error:
            raise SlotError(f"first is a {type(first).__name__}; give the number of a block of the hit") from error
        if not 0 <= first <= first + count <= hit.blocks:
            raise SlotError(
                f"blocks {first} .. {first + count} of a hit of {hit.blocks} blocks; "
                f"give at most {hit.blocks - first} block ids"
            )
        for name, pool in hit.pools.items():
            if name not in self.mappings and not self._fits(pool):
                raise SlotError("the hit comes from a market of another geometry; match and fetch with the same market")

    def _fits(self, pool: PoolDescriptor) -> bool:
        """Whether the pool has memory of our rank, and that memory has our geometry."""
        ranks = pool.ranks
        return self._rank < len(ranks) and ranks[self._rank][0].geometry() == self.cache.layout.geometry()

    def _sources(self, runs: Sequence[Offers], hit: Hit) -> list[tuple[MappedPool, Offers]]:
        """The leading runs of which the pool is mapped or can be mapped now, each with its pool."""
        sources = []
        for run in runs:
            mapped = self.mappings.of(hit.pools[run.pool], run)
            if mapped is None:
                break
            sources.append((mapped, run))
        return sources
