"""The live offer of each slot of a pool, in arrays; and the runs of offers that a match returns."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from kvmarket.errors import MessageError
from kvmarket.registry.protocol.messages import Before, PoolRecord
from kvmarket.registry.protocol.offering import UInt64s
from kvmarket.registry.trie.tokens import Int64s
from kvmarket.support.flags import Flags


class Run(NamedTuple):
    """Consecutive blocks of a match, in one pool at one epoch. The arrays have one element a block."""

    pool: str
    epoch: int
    slots: Int64s
    generations: UInt64s
    checksums: UInt64s | None


class Pool:
    """A pool, and for each slot its live offer: generation (0: none), epoch, checksum.

    `number` names the pool in the trie. `told`: a whole snapshot of the pool has been received (see `PoolTold`). `late`
    flags slots of which the trie may still hold an ended offer. Costs 26 bytes for each slot that was ever offered.
    """

    def __init__(self, number: int, record: PoolRecord) -> None:
        self.record = record
        self.told = False
        self._seen: Flags | None = None  # during a snapshot: slots whose offers it held so far
        self.anew(number)

    def anew(self, number: int) -> None:
        """End all offers; later offers are named by `number` in the trie. Costs O(1)."""
        slots = self.record.slots
        self.number = number
        self.generations = np.zeros(slots, np.uint64)
        self.epochs = np.zeros(slots, np.int64)
        self.checksums = np.zeros(slots, np.uint64)
        self.late = np.zeros(slots, np.bool_)
        self.lates = 0  # number of flags in `late`
        self.summed = False  # whether any offer had a checksum
        self.epoch = 0  # of the newest offer; of all live offers unless `mixed`
        self.mixed = False

    def standing(self) -> Int64s:
        """The slots that are offered. Costs O(slots)."""
        return np.flatnonzero(self.generations)

    def known(self, slots: Int64s) -> Int64s:
        """Those of the given slots that are offered. Raises MessageError for slots that the pool does not have."""
        if len(slots) == 1:  # faster than numpy
            slot = int(slots[0])
            if 0 <= slot < len(self.generations):
                return slots if self.generations[slot] else slots[:0]
        if len(slots) and int(slots.view(np.uint64).max()) >= len(self.generations):  # negative ones are huge here
            raise MessageError(f"slots beyond the {len(self.generations)} that pool {self.record.pool} has")
        offered: Int64s = slots[self.generations[slots] != 0]
        return offered

    def has(self, block: Before) -> bool:
        """Whether exactly this block is offered: its slot, at its epoch and generation."""
        slot = block.slot
        if slot >= len(self.generations):
            return False
        return int(self.generations[slot]) == block.generation and int(self.epochs[slot]) == block.epoch

    def same(self, slots: Int64s, epochs: Int64s | int, generations: UInt64s) -> Flags:
        """For each slot, whether its live offer has this epoch and generation. Slots must be in range."""
        same: Flags = (self.generations[slots] == generations) & (self.epochs[slots] == epochs)
        return same

    def newer(self, slots: Int64s, epochs: Int64s | int, generations: UInt64s) -> Flags:
        """For each slot, whether its live offer is newer than this one. Slots must be in range."""
        have = self.epochs[slots]
        newer = (have > epochs) | ((have == epochs) & (self.generations[slots] > generations))
        found: Flags = newer & (self.generations[slots] != 0)
        return found

    def note(self, slots: Int64s, epoch: int, generations: UInt64s, checksums: UInt64s | None) -> None:
        """Note the offers of these slots, which must have no live offer."""
        if epoch != self.epoch:
            self.mixed = self.mixed or bool(self.generations.any())
            self.epoch = epoch
        self.generations[slots] = generations
        self.epochs[slots] = epoch
        if checksums is not None or self.summed:
            self.checksums[slots] = 0 if checksums is None else checksums
            self.summed = True
        self.see(slots)

    def begin(self) -> None:
        """Begin a snapshot. Present offers stay live; `unseen` returns those that the snapshot did not hold."""
        self._seen = np.zeros(len(self.generations), np.bool_)

    @property
    def telling(self) -> bool:
        """Whether a snapshot of this pool is under way."""
        return self._seen is not None

    def see(self, slots: Int64s) -> None:
        """Note that the snapshot under way, if any, holds the offers of these slots."""
        if self._seen is not None:
            self._seen[slots] = True

    def unseen(self) -> Int64s:
        """End the snapshot; return the offered slots that it did not hold. Empty if none had begun. Costs O(slots)."""
        seen, self._seen, self.told = self._seen, None, True
        return np.empty(0, np.int64) if seen is None else np.flatnonzero((self.generations != 0) & ~seen)

    def runs(self, slots: Int64s) -> list[Run]:
        """The live offers of these slots as runs, cut where the epoch changes."""
        generations = self.generations.take(slots)
        if not (self.mixed or self.summed):  # the usual case
            return [Run(self.record.pool, self.epoch, slots, generations, None)]
        epochs, checksums = self.epochs[slots], self.checksums[slots]
        edges = [0, *(np.flatnonzero(epochs[1:] != epochs[:-1]) + 1).tolist(), len(slots)]
        found = []
        for start, end in itertools.pairwise(edges):
            sums = checksums[start:end] if checksums[start:end].any() else None
            found.append(Run(self.record.pool, int(epochs[start]), slots[start:end], generations[start:end], sums))
        return found
