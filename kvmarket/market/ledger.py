"""What an engine has on offer from one of its pools: so that nothing is offered twice, and all can be offered again."""

from __future__ import annotations

import numpy as np

from kvmarket.errors import SlotError
from kvmarket.pool import Slots
from kvmarket.registry.protocol.messages import Before, PoolRecord
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.space import Space
from kvmarket.support.flags import leading


class Ledger:
    """The offers of one pool of this engine: a space of its own. Not thread-safe."""

    def __init__(self, record: PoolRecord, block_size: int) -> None:
        """An empty ledger for the pool `record`, in blocks of `block_size` tokens."""
        self._name = record.pool
        self._space = Space(block_size, max_blocks=None)
        self._pool = self._space.add_pool(record)
        self._late: list[Offering] = []

    def news(self, offering: Offering) -> int:
        """How many of these blocks, counted from the front, are on offer already exactly so.

        Raises SlotError if one of the slots is on offer at this very generation for other tokens: its owner overwrote
        it without retiring it. Costs one match of the prefix where a slot is on offer already, else some us.
        """
        space = self.noted()
        same = self._pool.same(offering.slots, offering.epoch, offering.generations)
        if not same.any():
            return 0
        known = space.holds(offering)
        wrong = np.flatnonzero(same & ~known)
        if len(wrong):
            slot = int(offering.slots[wrong[0]])
            raise SlotError(
                f"block id {slot} is still on offer for other tokens; retire([{slot}]) before it is overwritten"
            )
        return leading(same & known)

    def add(self, offering: Offering) -> None:
        """Note that these blocks are on offer now; older offers of their slots are forgotten.

        Costs nothing until the ledger is next asked: do not write to the arrays before.
        """
        self._late.append(offering)

    def enter(self, offering: Offering) -> Offering | None:
        """Note that these blocks are on offer now; what of it is to be told, None where all was on offer exactly so.

        Raises and costs what `news` does, and where anything is to be told what `before` costs.
        """
        old = self.news(offering)
        if old == len(offering.slots):
            return None
        new = offering.part(old, len(offering.slots))
        before = self.before(new)
        new = new.going_on(before) if before is not None else new
        self.add(new)
        return new

    def before(self, offering: Offering) -> Before | None:
        """The block before the first one of `offering`, as it is on offer here; None if it is not.

        Costs one match of the prefix.
        """
        return self.noted().before(offering)

    def drop(self, slots: Slots) -> Slots:
        """Forget the offers of these slots; the ones that had one. Costs some us, and the removal of few."""
        return self.noted().retire(self._name, slots)

    def slots(self) -> Slots:
        """The slots on offer."""
        self.noted()
        return self._pool.standing()

    def clear(self) -> None:
        """Forget everything. Costs some us."""
        self._late = []
        self._space.retire(self._name, None)

    def close(self) -> None:
        """Give back the memory of everything; what is on offer is not known any more. Costs 0.2 us a branch."""
        self._late = []
        self._space.trie.clear()

    @property
    def collecting(self) -> bool:
        """Whether memory of what was forgotten is still to be given back, by `collect`."""
        return self._space.collecting

    def collect(self) -> None:
        """Give back some memory of what was forgotten. Costs up to some 0.3 ms."""
        self._space.collect()

    def noted(self) -> Space:
        """The space of all that is on offer, with what was added of late. Do not change it."""
        late, self._late = self._late, []
        for offering in late:
            self._space.offer(offering)
        return self._space
