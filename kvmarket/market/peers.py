"""The pools that this engine has seen in offers: the descriptor of each, and its generations, mapped once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from errno import EAGAIN
from typing import NamedTuple

import msgspec

from kvmarket import counters
from kvmarket.errors import LayoutError, SharedMemoryError, TransportError
from kvmarket.market.offer import Offers, PoolDescriptor, descriptor_of
from kvmarket.pool import GenerationReader
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import PoolRecord
from kvmarket.registry.space.standing import Run
from kvmarket.support.flags import leading
from kvmarket.support.transient import is_transient

DEAD_POOLS = 3  # pools with dead offers that one match skips: their owners have just retired a slot, or left
Matched = tuple[list[Run], list[PoolRecord]]
Descriptors = Callable[[str], Sequence[int] | None]


class Peer(NamedTuple):
    """A pool of which an offer was found."""

    descriptor: PoolDescriptor
    generations: GenerationReader


class Standing(NamedTuple):
    """Live offers of consecutive blocks, their pools by id, and the pool of the first offer that is not live."""

    offers: list[Offers]
    pools: dict[str, PoolDescriptor]
    dead: str | None  # the pool whose offer is dead or which cannot be read; None if all offers are live


class Peers:
    """Pools by id. A pool is decoded and its generations mapped when its first offer is found. Thread-safe."""

    def __init__(
        self, on_unreadable: Callable[[str], None], on_scarce: Callable[[str], None], descriptors: Descriptors
    ) -> None:
        """Start with no pools.

        `on_unreadable` is called with each pool that cannot be read, `on_scarce` with each that could not be read
        because descriptors or memory ran out, and may be tried again. `descriptors` returns the descriptors that this
        process holds of the memory of a pool in another PID namespace, or None if they have not come yet.
        """
        self._on_unreadable = on_unreadable
        self._on_scarce = on_scarce
        self._descriptors = descriptors
        self._peers: dict[str, Peer] = {}
        self._lock = threading.Lock()

    def of(self, record: PoolRecord) -> Peer | None:
        """Return the pool of `record`. Costs 0.1 ms the first time.

        If its description or its generations cannot be read (its owner is dying, say), counts that, calls
        `on_unreadable` or `on_scarce`, and returns None.
        """
        peer = self._peers.get(record.pool)
        if peer is not None:
            return peer
        try:
            peer = _meet(record, self._descriptors)
        except (msgspec.DecodeError, UnicodeDecodeError, LayoutError, TransportError, OSError, MemoryError) as error:
            scarce = is_transient(error)
            if scarce:
                counters.add("pool_passed_over", reason=type(error).__name__, detail=error)
            else:
                counters.add("pool_unreachable", reason=type(error).__name__, detail=error)
            (self._on_scarce if scarce else self._on_unreadable)(record.pool)
            return None
        with self._lock:
            self._peers[record.pool] = peer
        return peer

    def leading(
        self, match: Callable[[int, Collection[str]], Matched], first: int, without: Collection[str]
    ) -> tuple[list[Offers], dict[str, PoolDescriptor]]:
        """Return live offers of consecutive blocks from block `first` on, and their pools by id.

        `match(first, without)` finds offers from a block on, ignoring some pools. At a dead offer `match` is called
        again from that block on without its pool, at most `DEAD_POOLS` times: another pool may offer the block.
        """
        offers: list[Offers] = []
        pools: dict[str, PoolDescriptor] = {}
        for _ in range(1 + DEAD_POOLS):
            standing = self._standing(*match(first, without))
            offers += standing.offers
            pools |= standing.pools
            if standing.dead is None:
                break
            first += sum(map(len, standing.offers))
            without = {*without, standing.dead}
        return offers, pools

    def _standing(self, runs: Sequence[Run], records: Sequence[PoolRecord]) -> Standing:
        """Check the offers of `runs`, in order, up to the first dead one. `records`: the pool of each run."""
        found: list[Offers] = []
        pools: dict[str, PoolDescriptor] = {}
        for run, record in zip(runs, records, strict=True):
            peer = self.of(record)
            if peer is None:
                return Standing(found, pools, record.pool)
            live = leading(peer.generations.valid(run.epoch, run.slots, run.generations))
            if live:
                found.append(Offers(*run).part(0, live))
                pools[run.pool] = peer.descriptor
            if live < len(run.slots):
                return Standing(found, pools, record.pool)
        return Standing(found, pools, None)

    def met(self) -> tuple[str, ...]:
        """The pools of which offers were found and that have not left."""
        with self._lock:
            return tuple(self._peers)

    def forget(self, pools: Sequence[str]) -> None:
        """Forget pools that have left. Their generations are unmapped when nothing refers to them any more."""
        with self._lock:
            for pool in pools:
                self._peers.pop(pool, None)

    def close(self) -> None:
        """Drop all pools and all callbacks."""
        self._on_unreadable = self._on_scarce = self._descriptors = _nobody
        self._peers.clear()


def _nobody(pool: str) -> None:
    """Replaces the callbacks after `close`."""


def _meet(record: PoolRecord, descriptors: Descriptors) -> Peer:
    descriptor = descriptor_of(record.description)
    if descriptor.pool != record.pool or descriptor.slots != record.slots:
        raise LayoutError(f"pool {record.pool} is not the one that is described; its offers are ignored")
    if not descriptor.generations.owner.near:
        held = descriptors(record.pool)
        if held is None:
            raise SharedMemoryError(f"the memory of pool {record.pool} has not come yet") from BlockingIOError(
                EAGAIN, ""
            )
        descriptor = descriptor.held_by(Process.current(), held)
    return Peer(descriptor, GenerationReader(descriptor.generations, record.slots))
