"""The data half of a market: pools, mappings, copies. It knows no tokens, so a worker can hold it."""

from __future__ import annotations

import logging
import operator
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from kvmarket import counters
from kvmarket.errors import ClosedError, SlotError
from kvmarket.layout.packed import PackedMemory
from kvmarket.layout.paged import PagedCache, SlotArray
from kvmarket.market.avoided import Avoided
from kvmarket.market.fetch import Fetch, Piece
from kvmarket.market.offer import Hit, Offers, PoolDescriptor
from kvmarket.pool import GenerationReader, Slots, as_slots
from kvmarket.pool.landings import Landing
from kvmarket.processes.process_watch import ProcessWatch
from kvmarket.processes.relayed import Relayed, lives_with
from kvmarket.processes.shared_file import Process
from kvmarket.support.flags import leading
from kvmarket.support.sets import common
from kvmarket.support.transient import is_transient
from kvmarket.transport import Memory, enable_peer_access, export, map_memory
from kvmarket.ways import FAILURES, Copy, Started
from kvmarket.ways.movers import mover_of


@dataclass(frozen=True, eq=False)
class MappedPool:
    """Another engine's pool, mapped into this process. The memory is unmapped when this object is freed."""

    slots: SlotArray
    generations: GenerationReader
    owners: tuple[Process | Relayed, ...]  # the pool is useless if one of these processes dies
    lent: bool

    def alive(self) -> bool:
        """Whether all owners are alive. Costs about 20 us each."""
        return all(owner.alive() for owner in self.owners)


KEPT_FETCHES = 8  # fetches that are kept before the finished ones are dropped
_log = logging.getLogger("kvmarket")
# Pools of this process, by id and rank: CUDA IPC cannot open memory of the same process.
_own_arrays: dict[tuple[str, int], SlotArray] = {}


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
    ) -> None:
        """Export `cache` (CPU tensors are moved into shared memory in place), unless it is shared as `memory` already.

        `rank`: which rank's memory to map, of a pool with several ranks.

        `on_unreachable` is called with each pool that this process cannot map, `on_scarce` with each pool that it could
        not map because descriptors or memory ran out, and will try again. `programs` bounds the programs of a fetch
        that run at a time, and so the SMs. Raises TransportError.
        """
        self.cache = cache
        self.memory: Memory = memory or export(cache.storages())
        self.slots = cache.slot_array()
        self._rank, self._pid = rank, os.getpid()
        self.on_unreachable, self.on_scarce = on_unreachable, on_scarce
        self._skipped = Avoided()  # pools that are not tried for a while
        self._mapped: dict[str, MappedPool] = {}
        self._fetches: list[tuple[Fetch, Slots]] = []  # fetches under way: kept here, so that their mappings stay
        self._lock = threading.Lock()
        self._map_locks: dict[str, threading.Lock] = {}  # one per pool being mapped, which may take seconds
        self._launching = threading.Lock()  # fetches into one slot are launched in the order in which they retired it
        self._watch = ProcessWatch(self._heed_deaths)
        self.mover = mover_of(self.slots, programs)

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
            with self._lock:
                if len(self._fetches) >= KEPT_FETCHES:
                    self._prune()
                self._fetches.append((fetch, ids))
        return fetch

    def map_ahead(self, pools: Sequence[PoolDescriptor]) -> None:
        """Begin to map those of these pools whose memory takes long to map, so that a fetch finds that done."""
        for pool in filter(self._fits, pools):
            pool.ranks[self._rank][1].map_ahead(self.cache.device)

    def settle(self) -> None:
        """Conclude the fetches that are done. Costs a few us; nothing if no fetch is under way."""
        if self._fetches:
            with self._lock:
                self._prune()

    def check_landed(self, block_ids: Slots) -> None:
        """Raise SlotError if a fetch into one of these slots is still under way: its block cannot be published yet."""
        self.settle()
        under_way = [slots for _, slots in self._fetches]
        if not under_way:
            return
        for slot in common(np.concatenate(under_way), block_ids):
            raise SlotError(f"block id {slot} is still being fetched; call wait() on that fetch before you publish it")

    def forget(self, pools: Sequence[str]) -> None:
        """Drop the mappings of these pools, which have left. A copy under way keeps its mapping until it is done."""
        with self._on_device():
            with self._lock:
                self._prune()
                gone = [self._mapped.pop(pool, None) for pool in pools]
                for pool in pools:
                    self._map_locks.pop(pool, None)
                self._skipped.forget(pools)
                self._watch_owners()
            del gone  # without the lock: to unmap takes a while

    def close(self) -> None:
        """Wait for the copies under way, then drop every mapping. May be called twice."""
        self._watch.close()
        self.mover.close()
        with self._lock, self._on_device():
            self._prune()
            self.on_unreachable = self.on_scarce = None  # these callbacks refer to us: end the cycle
            self._mapped.clear()
            self._map_locks.clear()
            self._fetches.clear()

    def _on_device(self) -> AbstractContextManager[object]:
        """Make our GPU the current device: else torch makes a context on the first GPU when a mapping is dropped."""
        return nullcontext() if self.cache.device.type == "cpu" else torch.cuda.device(self.cache.device)

    def _prune(self) -> None:
        """Drop the fetches that are done, and with them the mappings that they kept alive."""
        self._fetches = [(fetch, slots) for fetch, slots in self._fetches if not fetch.done()]

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
            if name not in self._mapped and not self._fits(pool):
                raise SlotError("the hit comes from a market of another geometry; match and fetch with the same market")

    def _fits(self, pool: PoolDescriptor) -> bool:
        """Whether the pool has memory of our rank, and that memory has our geometry."""
        ranks = pool.ranks
        return self._rank < len(ranks) and ranks[self._rank][0].geometry() == self.cache.layout.geometry()

    def _sources(self, runs: Sequence[Offers], hit: Hit) -> list[tuple[MappedPool, Offers]]:
        """The leading runs of which the pool is mapped or can be mapped now, each with its pool."""
        sources = []
        for run in runs:
            mapped = self._mapped.get(run.pool) or self._map(hit.pools[run.pool])
            if mapped is None:
                break
            sources.append((mapped, run))
        return sources

    def _map(self, descriptor: PoolDescriptor) -> MappedPool | None:
        """Return the mapping of a pool; the first use makes it. Only threads that need the same pool wait for that.

        If that fails, counts it, calls `on_unreachable` or `on_scarce`, and returns None.
        """
        pool, dead = descriptor.pool, []
        with self._lock:
            lock = self._map_locks.setdefault(pool, threading.Lock())
        with lock:
            mapped = self._mapped.get(pool) or self._new_mapping(descriptor)
            with self._lock:
                if self._map_locks.get(pool) is lock:  # else the pool has left meanwhile: map it for this fetch only
                    del self._map_locks[pool]
                    if mapped is not None:
                        self._mapped[pool] = mapped
                        # A service that died with an owner could not report that, or has before: the new one counts too
                        dead = [self._mapped.pop(name) for name, each in [*self._mapped.items()] if not each.alive()]
                        self._watch_owners()
        del dead  # without the lock: to unmap takes a while
        return mapped

    def _watch_owners(self) -> None:
        """Watch the owners of all mapped pools: after their death perhaps nobody calls us any more."""
        owners = {owner for each in self._mapped.values() for owner in each.owners}
        self._watch.watch(owners - {Process.current()})

    def _heed_deaths(self, dead: frozenset[Process | Relayed]) -> bool:
        """Drop the mappings of dead owners; return whether no fetch is under way, which might still keep one."""
        self.forget([name for name, each in self._mapped.copy().items() if not dead.isdisjoint(each.owners)])
        return not self._fetches

    def _new_mapping(self, descriptor: PoolDescriptor) -> MappedPool | None:
        if descriptor.pool in self._skipped.now():
            counters.add("pool_passed_over", reason="it could not be mapped lately")
            return None
        try:
            generations = GenerationReader(descriptor.generations, descriptor.slots)
            array = self._array_of(descriptor)
            _, memory = descriptor.ranks[self._rank]
            self.mover.prepare(array, memory.device)
        except FAILURES as error:
            scarce = is_transient(error)
            name = "pool_passed_over" if scarce else "pool_unreachable"
            counters.add(name, reason=type(error).__name__, detail=error)
            _log.info("pool %s is unreachable: %s", descriptor.pool, error)
            if scarce:
                self._skipped.for_now(descriptor.pool)
            if (hear := self.on_scarce if scarce else self.on_unreachable) is not None:
                hear(descriptor.pool)
            return None
        owners = descriptor.generations.owner, memory.owner
        alive_with = tuple(lives_with(each, descriptor.generations) for each in owners)
        return MappedPool(array, generations, alive_with, descriptor.lent)

    def _array_of(self, descriptor: PoolDescriptor) -> SlotArray:
        """The pool's slots: mapped, or used directly if the pool belongs to this same process."""
        own = _own_arrays.get((descriptor.pool, self._rank))
        if own is None:
            layout, memory = descriptor.ranks[self._rank]
            return SlotArray(layout, map_memory(memory, self.cache.device))
        if own.device != self.cache.device:
            enable_peer_access(own.segments[0], self.cache.device)
        return own


def register_own(pool: str, slots: SlotArray, rank: int = 0) -> None:
    """Let data halves of this process read the memory of a rank of `pool` directly."""
    _own_arrays[pool, rank] = slots


def unregister_own(pool: str, rank: int = 0) -> None:
    """Undo `register_own`."""
    _own_arrays.pop((pool, rank), None)
