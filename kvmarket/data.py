"""The data half of a market: pools, mappings, copies. It knows no tokens, so a worker can hold it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import msgspec
import torch

from kvmarket import counters
from kvmarket.errors import KVMarketError, SlotError, TransportError
from kvmarket.kernels import copy_blocks, prepare
from kvmarket.layout import PagedCache, SlotArray
from kvmarket.moved import Moved, Piece
from kvmarket.offer import Hit, PoolDescriptor
from kvmarket.pool import GenerationReader
from kvmarket.transport import Memory, enable_peer_access, export, map_memory

FETCH_PROGRAMS = 24  # of Triton: more add little to the rate of the link, and take SMs from the engine's own kernels


class MappedPool(msgspec.Struct, frozen=True):
    """A pool of somebody else, mapped into this process: its slots and its generations.

    Dropped by the garbage collector.
    """

    slots: SlotArray
    generations: GenerationReader


_own_arrays: dict[str, SlotArray] = {}  # memory of this process cannot be opened by IPC: its pools, by id


class DataHalf:
    """Exports one engine's cache, maps other engines' pools once each, and copies blocks out of them.

    Calls may come from any thread.
    """

    def __init__(self, cache: PagedCache, rank: int = 0, on_unreachable: Callable[[str], None] | None = None) -> None:
        """Export `cache` (CPU tensors are moved into shared memory in place).

        `rank` picks the memory of a pool of several ranks.

        `on_unreachable` hears of pools that this process cannot map. Raises TransportError with what to do.
        """
        self.cache = cache
        self.memory: Memory = export(cache.storages())
        self.slots = cache.slot_array()
        self._rank = rank
        self._on_unreachable = on_unreachable
        self._mapped: dict[str, MappedPool] = {}
        self._flying: list[
            tuple[Moved, frozenset[int]]
        ] = []  # copies under way keep their mappings, whatever the caller does with the handle
        self._lock = threading.Lock()
        self._device = cache.device
        self._cuda = cache.device.type == "cuda"
        self._stream = torch.cuda.Stream(cache.device) if self._cuda else None
        if self._cuda:
            prepare(self.slots, self.slots)  # compiles for a second here instead of in the first fetch
        self._copier = None if self._cuda else ThreadPoolExecutor(1, "kvmarket-copy")

    def fetch(self, hit: Hit, block_ids: Sequence[int], first: int = 0) -> Moved:
        """Copy blocks `first` .. `first + len(block_ids)` of `hit` into these slots of the cache; returns at once.

        The copy waits for what the current stream holds, and runs on a stream of its own; the slots must not be read or
        written until `done()`. The caller has retired them. Never raises because a peer changed its mind or died: then
        fewer blocks are valid. Raises SlotError for ids that do not fit, before anything is launched. Costs some 0.1
        ms, and the mapping of a pool seen for the first time.
        """
        self.check(hit, block_ids, first)
        offers = hit.offers[first : first + len(block_ids)]
        pieces = []
        at = 0
        for (pool, epoch), run in groupby(offers, key=lambda offer: (offer.pool, offer.epoch)):
            slots, generations = zip(*((offer.slot, offer.generation) for offer in run), strict=True)
            mapped = self._map(hit.pools[pool])
            if mapped is None:
                break
            valid = mapped.generations.valid(epoch, slots, generations)
            live = valid.index(False) if False in valid else len(valid)
            if live:
                piece = Piece(mapped.generations, epoch, slots[:live], generations[:live])
                pieces.append((mapped, piece, list(block_ids[at : at + live])))
            at += live
            if live < len(valid):
                counters.add("fetch_cut", reason="a block was retired before it could be fetched")
                break
        moved = self._launch(pieces, len(block_ids))
        with self._lock:
            self._prune()
            self._flying.append((moved, frozenset(block_ids)))
        return moved

    def check_landed(self, block_ids: Sequence[int]) -> None:
        """Raise SlotError if a fetch into one of these slots is still under way: there is nothing to publish yet."""
        with self._lock:
            self._prune()
            flying = {slot for _, slots in self._flying for slot in slots}
        for slot in block_ids:
            if slot in flying:
                raise SlotError(
                    f"block id {slot} is still being fetched; call wait() on that fetch before you publish it"
                )

    def forget(self, pools: Sequence[str]) -> None:
        """Drop the mappings of these pools, which are gone; a copy in flight keeps its mapping until it is done."""
        with self._lock:
            self._prune()
            for pool in pools:
                self._mapped.pop(pool, None)

    def close(self) -> None:
        """Drop every mapping, after the copies in flight. May be called twice."""
        if self._copier is not None:
            self._copier.shutdown(wait=True)
        if self._stream is not None:
            self._stream.synchronize()
        with self._lock:
            self._mapped.clear()
            self._flying.clear()

    def _prune(self) -> None:
        """Forget copies that are done, and with them what they kept alive."""
        self._flying = [(moved, slots) for moved, slots in self._flying if not moved.done()]

    def check(self, hit: Hit, block_ids: Sequence[int], first: int) -> None:
        """Raise SlotError unless `fetch` could take these arguments; launches nothing."""
        if not 0 <= first <= first + len(block_ids) <= hit.blocks:
            raise SlotError(
                f"blocks {first} .. {first + len(block_ids)} of a hit of {hit.blocks} blocks; "
                f"give at most {hit.blocks - first} block ids"
            )
        for pool in {offer.pool for offer in hit.offers[first : first + len(block_ids)]}:
            if hit.pools[pool].layout.geometry() != self.cache.layout.geometry():
                raise SlotError("the hit comes from a market of another geometry; match and fetch with the same market")

    def _map(self, descriptor: PoolDescriptor) -> MappedPool | None:
        """The mapping of a pool, made on first use.

        None, counted and told to `on_unreachable`, where it cannot be had.
        """
        with self._lock:
            mapped = self._mapped.get(descriptor.pool)
            if mapped is not None:
                return mapped
            try:
                generations = GenerationReader(descriptor.generations, descriptor.layout.slots)
                array = self._array_of(descriptor)
            except (KVMarketError, OSError) as error:
                counters.add("pool_unreachable", reason=f"{type(error).__name__}: {error}")
                if self._on_unreachable is not None:
                    self._on_unreachable(descriptor.pool)
                return None
            if self._cuda:
                prepare(array, self.slots)
            mapped = self._mapped[descriptor.pool] = MappedPool(array, generations)
            return mapped

    def _array_of(self, descriptor: PoolDescriptor) -> SlotArray:
        """The pool's slots: mapped, or, where it belongs to this very process, as they are."""
        own = _own_arrays.get(descriptor.pool)
        if own is None:
            return SlotArray(descriptor.layout, map_memory(self._memory_of(descriptor), self._device))
        if own.device != self._device:
            enable_peer_access(own.segments[0], self._device)
        return own

    def _memory_of(self, descriptor: PoolDescriptor) -> Memory:
        if self._rank >= len(descriptor.ranks):
            raise TransportError(f"a pool of {len(descriptor.ranks)} ranks has no memory for rank {self._rank}")
        return descriptor.ranks[self._rank]

    def _launch(self, pieces: list[tuple[MappedPool, Piece, list[int]]], asked: int) -> Moved:
        checks = [piece for _, piece, _ in pieces]
        keep = [mapped for mapped, _, _ in pieces]
        if self._copier is not None:
            future = self._copier.submit(self._copy, pieces)
            return Moved(asked, checks, future.done, future.result, keep)
        assert self._stream is not None
        event = torch.cuda.Event()
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                try:
                    held = self._copy(pieces)
                except RuntimeError as error:  # out of memory, say: nothing that was launched may land later on
                    self._stream.synchronize()
                    counters.add("fetch_failed", reason=f"the copy could not be launched: {error}")
                    return Moved(asked, [], lambda: True, lambda: None, None)
                event.record()
        return Moved(asked, checks, event.query, event.synchronize, [keep, held])

    def _copy(self, pieces: list[tuple[MappedPool, Piece, list[int]]]) -> list[torch.Tensor]:
        """Launch the copies; the tensors that must live until they are done."""
        held = []
        for mapped, piece, block_ids in pieces:
            ids = torch.tensor([piece.slots, block_ids], dtype=torch.int64)
            if self._cuda:
                ids = ids.pin_memory().to(self._device, non_blocking=True)
            copy_blocks(mapped.slots, ids[0], self.slots, ids[1], programs=FETCH_PROGRAMS)
            held.append(ids)
        return held


def register_own(pool: str, slots: SlotArray) -> None:
    """Let data halves of this process read `pool` directly."""
    _own_arrays[pool] = slots


def unregister_own(pool: str) -> None:
    """Undo `register_own`."""
    _own_arrays.pop(pool, None)
