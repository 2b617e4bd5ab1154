"""The live offers of one of an engine's own pools: no block is offered twice, and all can be offered again."""

from __future__ import annotations

import numpy as np

from kvmarket.errors import SlotError
from kvmarket.pool import Slots, UInt64s
from kvmarket.registry.protocol.messages import Before, PoolRecord
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.lookup import before, holds
from kvmarket.registry.space.space import Space
from kvmarket.support.flags import leading


class Ledger:
    """The live offers of one pool of this engine, in a `Space` of their own. Not thread-safe."""

    def __init__(self, record: PoolRecord, block_size: int) -> None:
        """Make an empty ledger for the pool `record`, with blocks of `block_size` tokens."""
        self._name = record.pool
        self._space = Space(block_size, max_blocks=None)
        self._pool = self._space.add_pool(record)
        self._pool.told = True  # the ledger is all that there is to tell
        self._late: list[Offering] = []

    def news(self, offering: Offering) -> int:
        """Number of leading blocks that are already offered with the same tokens, slot, epoch and generation.

        Raises SlotError if a slot is offered at the same generation for other tokens: its owner overwrote it without
        retiring it. Costs a few us; one match of the prefix if any of the slots is already offered.
        """
        space = self.noted()
        same = self._pool.same(offering.slots, offering.epoch, offering.generations)
        if not same.any():
            return 0
        known = holds(space, offering)
        wrong = np.flatnonzero(same & ~known)
        if len(wrong):
            slot = int(offering.slots[wrong[0]])
            raise SlotError(
                f"block id {slot} is still on offer for other tokens; retire([{slot}]) before it is overwritten"
            )
        return leading(same & known)

    def add(self, offering: Offering) -> None:
        """Note that these blocks are offered now. They replace older offers of their slots.

        `noted` does the work, also where `news`, `before`, `drop` or `slots` calls it: until then do not write to the
        arrays.
        """
        self._late.append(offering)

    def enter(self, offering: Offering) -> Offering | None:
        """Note that these blocks are on offer now; return the part that others must be told, None if all was on offer.

        Raises and costs what `news` does; if there is something to tell, it also costs what `before` does.
        """
        old = self.news(offering)
        if old == len(offering.slots):
            return None
        new = offering.part(old, len(offering.slots))
        last = self.before(new)
        new = new.going_on(last) if last is not None else new
        self.add(new)
        return new

    def before(self, offering: Offering) -> Before | None:
        """The offer of the block before the first block of `offering`; None if that block is not offered here.

        Costs one match of the prefix.
        """
        return before(self.noted(), offering)

    def drop(self, slots: Slots) -> Slots:
        """Forget the offers of these slots; return the slots that had one. Costs a few us for each run of blocks."""
        return self.noted().retire(self._name, slots)

    def checksums(self, slots: Slots) -> UInt64s:
        """The checksums with which these slots were offered last; zero where there was none."""
        self.noted()
        found: UInt64s = self._pool.checksums[slots]
        return found

    def slots(self) -> Slots:
        """The slots that are offered."""
        self.noted()
        return self._pool.standing()

    def clear(self) -> None:
        """Forget all offers. Costs a few us; `collect` frees the memory."""
        self._late = []
        self._space.retire(self._name, None)

    def close(self) -> None:
        """Free all memory. The ledger cannot be used any more. Costs 0.2 us a branch."""
        self._late = []
        self._space.trie.clear()

    @property
    def collecting(self) -> bool:
        """Whether `collect` still has memory of forgotten offers to free."""
        return self._space.collecting

    def collect(self) -> None:
        """Free some memory of forgotten offers. Costs up to about 0.3 ms."""
        self._space.collect()

    def noted(self) -> Space:
        """The space of all live offers, after putting in those that `add` deferred. Do not change it."""
        late, self._late = self._late, []
        for offering in late:
            self._space.offer(offering)
        return self._space
