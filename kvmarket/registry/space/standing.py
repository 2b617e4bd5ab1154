"""What stands for the slots of a pool: the offer of each, in arrays; and the runs of them that a match returns."""

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
    """Consecutive blocks of a match that lie in one pool at one epoch; arrays have one element a block."""

    pool: str
    epoch: int
    slots: Int64s
    generations: UInt64s
    checksums: UInt64s | None


class Pool:
    """A pool, and for each of its slots the offer that stands: generation (0: none), epoch, checksum.

    `number` names it in the trie; `told`: all that stands in it has been told at least once (see `PoolTold`). `late`
    flags slots of which the trie may still have an offer that stands no longer. 26 bytes a slot that ever was on offer.
    """

    def __init__(self, number: int, record: PoolRecord) -> None:
        self.record = record
        self.told = False
        self._seen: Flags | None = None  # since a snapshot began: slots whose offers were told
        self.anew(number)

    def anew(self, number: int) -> None:
        """Nothing stands any more, and what is offered from now on is named by this number. Costs O(1)."""
        slots = self.record.slots
        self.number = number
        self.generations = np.zeros(slots, np.uint64)
        self.epochs = np.zeros(slots, np.int64)
        self.checksums = np.zeros(slots, np.uint64)
        self.late = np.zeros(slots, np.bool_)
        self.lates = 0  # slots so flagged
        self.summed = False  # whether any offer had a checksum
        self.epoch = 0  # of the newest offer, and of all that stand unless they are
        self.mixed = False

    def standing(self) -> Int64s:
        """The slots on offer. Costs O(slots)."""
        return np.flatnonzero(self.generations)

    def known(self, slots: Int64s) -> Int64s:
        """The given slots that are on offer. Raises MessageError for slots that the pool does not have."""
        if len(slots) == 1:  # numpy would take longer
            slot = int(slots[0])
            if 0 <= slot < len(self.generations):
                return slots if self.generations[slot] else slots[:0]
        if len(slots) and int(slots.view(np.uint64).max()) >= len(self.generations):  # below zero too
            raise MessageError(f"slots beyond the {len(self.generations)} that pool {self.record.pool} has")
        offered: Int64s = slots[self.generations[slots] != 0]
        return offered

    def has(self, block: Before) -> bool:
        """Whether exactly this block is on offer: its slot, at its epoch and generation."""
        slot = block.slot
        if slot >= len(self.generations):
            return False
        return int(self.generations[slot]) == block.generation and int(self.epochs[slot]) == block.epoch

    def same(self, slots: Int64s, epochs: Int64s | int, generations: UInt64s) -> Flags:
        """For each slot in range, whether exactly this offer stands: then its block is where it belongs."""
        same: Flags = (self.generations[slots] == generations) & (self.epochs[slots] == epochs)
        return same

    def newer(self, slots: Int64s, epochs: Int64s | int, generations: UInt64s) -> Flags:
        """For each slot in range, whether a newer offer stands than this one."""
        have = self.epochs[slots]
        newer = (have > epochs) | ((have == epochs) & (self.generations[slots] > generations))
        found: Flags = newer & (self.generations[slots] != 0)
        return found

    def note(self, slots: Int64s, epoch: int, generations: UInt64s, checksums: UInt64s | None) -> None:
        """These slots are on offer, where nothing is any more."""
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
        """A snapshot begins: what stands counts on, and goes at its end unless it is told again."""
        self._seen = np.zeros(len(self.generations), np.bool_)

    @property
    def telling(self) -> bool:
        """Whether a snapshot of what stands is under way."""
        return self._seen is not None

    def see(self, slots: Int64s) -> None:
        """These offers were told."""
        if self._seen is not None:
            self._seen[slots] = True

    def unseen(self) -> Int64s:
        """The snapshot is complete: the slots on offer that it did not tell, if one began. Costs O(slots)."""
        seen, self._seen, self.told = self._seen, None, True
        return np.empty(0, np.int64) if seen is None else np.flatnonzero((self.generations != 0) & ~seen)

    def runs(self, slots: Int64s) -> list[Run]:
        """What stands for these slots, cut where the epoch changes."""
        generations = self.generations.take(slots)
        if not (self.mixed or self.summed):  # mostly so
            return [Run(self.record.pool, self.epoch, slots, generations, None)]
        epochs, checksums = self.epochs[slots], self.checksums[slots]
        edges = [0, *(np.flatnonzero(epochs[1:] != epochs[:-1]) + 1).tolist(), len(slots)]
        found = []
        for start, end in itertools.pairwise(edges):
            sums = checksums[start:end] if checksums[start:end].any() else None
            found.append(Run(self.record.pool, int(epochs[start]), slots[start:end], generations[start:end], sums))
        return found
