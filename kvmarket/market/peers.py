"""The pools of a market as this engine knows them: what describes each, and its generations, mapped once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from errno import EAGAIN
from typing import NamedTuple

import msgspec

from kvmarket import counters
from kvmarket.errors import LayoutError, SharedMemoryError, TransportError
from kvmarket.market.offer import Offers, PoolDescriptor
from kvmarket.pool import GenerationReader
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import PoolRecord
from kvmarket.registry.space.standing import Run
from kvmarket.support.flags import leading
from kvmarket.support.transient import is_transient
from kvmarket.transport import decode_memory

DEAD_POOLS = 3  # that a match looks behind: their owners have just retired something, or left while no service lived
Matched = tuple[list[Run], list[PoolRecord]]
Descriptors = Callable[[str], Sequence[int] | None]
_decoder = msgspec.msgpack.Decoder(PoolDescriptor, dec_hook=decode_memory)


class Peer(NamedTuple):
    """A pool that offers were seen of."""

    descriptor: PoolDescriptor
    generations: GenerationReader


class Standing(NamedTuple):
    """Offers of consecutive blocks that are not dead, and their pools by id; and of which pool the next one is dead."""

    offers: list[Offers]
    pools: dict[str, PoolDescriptor]
    dead: str | None  # or cannot be met; None where all stand


class Peers:
    """Pools by id, met when an offer of theirs is first found. Thread-safe."""

    def __init__(
        self, on_unreadable: Callable[[str], None], on_scarce: Callable[[str], None], descriptors: Descriptors
    ) -> None:
        """None yet.

        `on_unreadable` hears of pools that cannot be met, `on_scarce` of those that could not be met for want of a
        descriptor, or of memory: these may be tried again. `descriptors`: of the memory of a pool in another PID
        namespace, which this process holds; None where they have not come yet.
        """
        self._on_unreadable = on_unreadable
        self._on_scarce = on_scarce
        self._descriptors = descriptors
        self._peers: dict[str, Peer] = {}
        self._turn = threading.Lock()

    def of(self, record: PoolRecord) -> Peer | None:
        """The pool of `record`.

        None, counted, and told to `on_unreadable` or `on_scarce`, where its description or its generations cannot be
        read: its owner is just dying, say. Costs 0.1 ms the first time.
        """
        peer = self._peers.get(record.pool)
        if peer is not None:
            return peer
        try:
            peer = _meet(record, self._descriptors)
        except (msgspec.DecodeError, UnicodeDecodeError, LayoutError, TransportError, OSError, MemoryError) as error:
            scarce = is_transient(error)
            name = "pool_passed_over" if scarce else "pool_unreachable"
            counters.add(name, reason=type(error).__name__, detail=error)
            (self._on_scarce if scarce else self._on_unreadable)(record.pool)
            return None
        with self._turn:
            self._peers[record.pool] = peer
        return peer

    def leading(
        self, match: Callable[[int, Collection[str]], Matched], first: int, without: Collection[str]
    ) -> tuple[list[Offers], dict[str, PoolDescriptor]]:
        """The offers, not dead, of the leading blocks from block `first` on that `match` finds; and their pools, by id.

        `match` is asked from a block on, and without some pools. Where the offer of a block is dead, others have it
        perhaps: it is asked again from there, `DEAD_POOLS` times at most.
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
        """The leading offers of `runs`, each of the pool of its record, that are not dead."""
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
        """The pools that offers were found of, and that have not gone."""
        with self._turn:
            return tuple(self._peers)

    def forget(self, pools: Sequence[str]) -> None:
        """These pools are gone; their mappings go with the last hit that holds them."""
        with self._turn:
            for pool in pools:
                self._peers.pop(pool, None)

    def close(self) -> None:
        """Let go of everything, whoever asked to hear of it included."""
        self._on_unreadable = self._on_scarce = self._descriptors = _nobody
        self._peers.clear()


def _nobody(pool: str) -> None:
    """Who hears of pools when nobody does any more."""


def _meet(record: PoolRecord, descriptors: Descriptors) -> Peer:
    descriptor = _decoder.decode(record.description)
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
