"""Other engines' pools, mapped into this process for one data half, and the fetches under way that use them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from kvmarket import counters
from kvmarket.layout.paged import SlotArray
from kvmarket.market.fetch import Fetch
from kvmarket.market.offer import Offers, PoolDescriptor
from kvmarket.pool import GenerationReader, Slots
from kvmarket.pool.avoided import Avoided
from kvmarket.processes.process_watch import ProcessWatch
from kvmarket.processes.relayed import Relayed, lives_with
from kvmarket.processes.shared_file import Process
from kvmarket.support.transient import is_transient
from kvmarket.transport import enable_peer_access, map_memory
from kvmarket.ways import FAILURES
from kvmarket.ways.copying import Mover

PINNING_SECONDS = 0.02  # between two looks at fetches that keep memory of a pool that has left
KEPT_FETCHES = 8  # fetches that are kept before the finished ones are dropped
_log = logging.getLogger("kvmarket")
# Pools of this process, by id and rank: CUDA IPC cannot open memory of the same process.
_own_arrays: dict[tuple[str, int], SlotArray] = {}


@dataclass(frozen=True, eq=False)
class MappedPool:
    """Another engine's pool, mapped into this process: its slots and its generations.

    The memory is unmapped when this object is freed.
    """

    slots: SlotArray
    generations: GenerationReader
    owners: tuple[Process | Relayed, ...]  # the pool is useless if one of these processes dies
    lent: bool
    epoch: int  # of the pool when it was mapped

    def alive(self) -> bool:
        """Whether all owners are alive. Costs about 20 us each."""
        return all(owner.alive() for owner in self.owners)

    @property
    def taken_back(self) -> bool:
        """Whether this is memory that its lender has taken back: all offers are dead. Costs 0.5 us."""
        return self.lent and self.generations.epoch != self.epoch


class Mappings:
    """Maps each pool once, and drops the mapping when the pool leaves or an owner of it dies. Thread-safe.

    A fetch under way keeps the mappings that it uses.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int,
        mover: Mover,
        on_unreachable: Callable[[str], None] | None,
        on_scarce: Callable[[str], None] | None,
        look_seconds: float,
    ) -> None:
        """Start with none. `rank`: whose memory is mapped, on `device`. `mover`: who copies from it.

        For the callbacks, which may be set later, and `look_seconds` see `DataHalf`.
        """
        self.on_unreachable, self.on_scarce = on_unreachable, on_scarce
        self._device, self._rank, self._mover = device, rank, mover
        self._skipped = Avoided()  # pools that are not tried for a while
        self._mapped: dict[str, MappedPool] = {}
        self._fetches: list[tuple[Fetch, Slots]] = []  # fetches under way: kept here, so that their mappings stay
        self._lock = threading.Lock()
        self._map_locks: dict[str, threading.Lock] = {}  # one per pool being mapped, which may take seconds
        self._look_seconds = look_seconds
        self._pinning: set[Fetch] = set()  # fetches under way that may still keep a mapping that was dropped
        self._watch = ProcessWatch(self._heed)

    def __contains__(self, pool: str) -> bool:
        """Whether this pool is mapped."""
        return pool in self._mapped

    def of(self, descriptor: PoolDescriptor, offers: Offers) -> MappedPool | None:
        """Return the mapping of a pool, which has these offers; the first use makes it.

        Only threads that need the same pool wait for that. If it fails, counts it, calls `on_unreachable` or
        `on_scarce`, and returns None. None too, and nothing is mapped, if all of the offers are dead by now: the pool
        may have left the market, and nobody would say so again.
        """
        return self._mapped.get(descriptor.pool) or self._map(descriptor, offers)

    def ahead(self, descriptor: PoolDescriptor) -> None:
        """Begin to map the memory of a pool, if that takes long, so that `of` finds it done."""
        if descriptor.pool not in self._mapped:
            descriptor.ranks[self._rank][1].map_ahead(self._device)

    def keep(self, fetch: Fetch, slots: Slots) -> None:
        """Keep what `fetch`, which brings blocks into `slots`, reads, until it is done."""
        with self._lock:
            if len(self._fetches) >= KEPT_FETCHES:
                self._prune()
            self._fetches.append((fetch, slots))

    def landing(self) -> Sequence[Slots]:
        """The slots of each fetch under way. Concludes those that are done. Costs a few us; nothing without fetches."""
        if self._fetches:
            with self._lock:
                self._prune()
        return [slots for _, slots in self._fetches]

    def forget(self, pools: Sequence[str]) -> None:
        """Drop the mappings of these pools, which have left. A copy under way keeps its mapping until it is done.

        A thread looks when that is: perhaps nobody asks whether it is done.
        """
        with self._on_device():
            with self._lock:
                self._prune()
                gone = [self._mapped.pop(pool, None) for pool in pools]
                under_way = {fetch for fetch, _ in self._fetches}
                self._pinning = under_way if any(gone) else under_way & self._pinning
                for pool in pools:
                    self._map_locks.pop(pool, None)
                self._skipped.forget(pools)
                self._watch_owners()
            del gone  # without the lock: to unmap takes a while

    def close_watch(self) -> None:
        """Heed no more deaths. May be called again."""
        self._watch.close()

    def close(self) -> None:
        """Drop every mapping; the copies must have ended. May be called twice."""
        with self._lock, self._on_device():
            self._prune()
            self.on_unreachable = self.on_scarce = None  # these callbacks refer to our owner: end the cycle
            self._mapped.clear()
            self._map_locks.clear()
            self._fetches.clear()
            self._pinning.clear()
        self.close_watch()  # another thread may have dropped mappings meanwhile, which starts it again

    def _on_device(self) -> AbstractContextManager[object]:
        """Make our GPU the current device: else torch makes a context on the first GPU when a mapping is dropped."""
        return nullcontext() if self._device.type == "cpu" else torch.cuda.device(self._device)

    def _prune(self) -> None:
        """Drop the fetches that are done, and with them the mappings that they kept alive."""
        self._fetches = [(fetch, slots) for fetch, slots in self._fetches if not fetch.done()]

    def _map(self, descriptor: PoolDescriptor, offers: Offers) -> MappedPool | None:
        pool, dead = descriptor.pool, []
        with self._lock:
            lock = self._map_locks.setdefault(pool, threading.Lock())
        with lock:
            mapped = self._mapped.get(pool) or self._new(descriptor, offers)
            with self._lock:
                if self._map_locks.get(pool) is lock:  # else the pool has left meanwhile: map it for this fetch only
                    del self._map_locks[pool]
                    if mapped is not None and _stands(mapped.generations, offers):
                        self._mapped[pool] = mapped
                        # A service that died with an owner could not report that, or has before: the new one counts too
                        dead = [self._mapped.pop(name) for name, each in [*self._mapped.items()] if not each.alive()]
                        self._watch_owners()
        del dead  # without the lock: to unmap takes a while
        return mapped

    def _new(self, descriptor: PoolDescriptor, offers: Offers) -> MappedPool | None:
        if descriptor.pool in self._skipped.now():
            counters.add("pool_passed_over", reason="it could not be mapped lately")
            return None
        try:
            generations = GenerationReader(descriptor.generations, descriptor.slots)
            if not _stands(generations, offers):
                counters.add("fetch_cut", reason="a block was retired before it could be fetched")
                return None
            array = self._array_of(descriptor)
            _, memory = descriptor.ranks[self._rank]
            self._mover.prepare(array, memory.device)
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
        owners = (descriptor.generations.owner, memory.owner)
        living = tuple(lives_with(each, descriptor.generations) for each in owners)
        return MappedPool(array, generations, living, descriptor.lent, offers.epoch)

    def _array_of(self, descriptor: PoolDescriptor) -> SlotArray:
        """The pool's slots: mapped, or used directly if the pool belongs to this same process."""
        own = _own_arrays.get((descriptor.pool, self._rank))
        if own is None:
            layout, memory = descriptor.ranks[self._rank]
            return SlotArray(layout, map_memory(memory, self._device))
        if own.device != self._device:
            enable_peer_access(own.segments[0], self._device)
        return own

    def _watch_owners(self) -> None:
        """Watch the owners of all mapped pools, lent memory and pinning fetches: perhaps nobody calls us any more."""
        owners = {owner for each in self._mapped.values() for owner in each.owners} - {Process.current()}
        lent = any(each.lent for each in self._mapped.values())
        if self._pinning:
            self._watch.watch(owners | {Process.current()}, PINNING_SECONDS)
        else:
            self._watch.watch(owners, self._look_seconds if lent else 0.0)

    def _heed(self, dead: frozenset[Process | Relayed]) -> bool:
        """Drop the mappings of dead owners, and of memory that was taken back.

        Returns whether no fetch is under way that might still keep one of them.
        """
        mapped = self._mapped.copy().items()
        gone = [name for name, each in mapped if each.taken_back or not dead.isdisjoint(each.owners)]
        if gone or dead or self._pinning:
            self.forget(gone)
        return not self._pinning


def _stands(generations: GenerationReader, offers: Offers) -> bool:
    """Whether one of these offers is alive."""
    return bool(generations.valid(offers.epoch, offers.slots, offers.generations).any())


def register_own(pool: str, slots: SlotArray, rank: int = 0) -> None:
    """Let data halves of this process read the memory of a rank of `pool` directly."""
    _own_arrays[pool, rank] = slots


def unregister_own(pool: str, rank: int = 0) -> None:
    """Undo `register_own`."""
    _own_arrays.pop((pool, rank), None)
