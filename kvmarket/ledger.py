"""What an engine has on offer from one of its pools: so that nothing is offered twice, and all can be offered again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvmarket.errors import SlotError
from kvmarket.flags import Flags, leading
from kvmarket.pool import Slots
from kvmarket.registry.messages import PoolRecord
from kvmarket.registry.offering import Offering
from kvmarket.registry.space import Space


class Ledger:
    """The offers of one pool of this engine: a space of its own. Not thread-safe."""

    def __init__(self, record: PoolRecord, block_size: int) -> None:
        """An empty ledger for the pool `record`, in blocks of `block_size` tokens."""
        self._record, self._block_size = record, block_size
        self.clear()

    def news(self, offering: Offering) -> int:
        """How many of these blocks, counted from the front, are on offer already exactly so.

        Raises SlotError if one of the slots is on offer at this very generation for other tokens: its owner overwrote
        it without retiring it. Costs one match of the prefix where a slot is on offer already, else some us.
        """
        space = self._noted()
        same: Flags = self._pool.generations[offering.slots] == offering.generations
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

    def before(self, offering: Offering) -> int:
        """A slot that has the block before the first one of `offering` on offer, -1 if none has.

        Costs one match of the prefix.
        """
        return self._noted().before(offering)

    def drop(self, slots: Slots) -> Slots:
        """Forget the offers of these slots; the ones that had one. Costs some us, and the removal of those."""
        return self._noted().retire(self._record.pool, slots)

    def slots(self) -> Slots:
        """The slots on offer."""
        self._noted()
        return self._pool.standing()

    def clear(self) -> None:
        """Forget everything."""
        self._late: list[Offering] = []
        self._space = Space(self._block_size, max_blocks=None)
        self._space.add_pool(self._record)
        self._pool = self._space.pools[self._record.pool]

    def offerings(self) -> Iterator[Offering]:
        """Everything on offer, prefixes before what follows them. Do not change the ledger meanwhile."""
        return self._noted().offerings()

    def _noted(self) -> Space:
        """The space, with all that was added."""
        late, self._late = self._late, []
        for offering in late:
            self._space.offer(offering)
        return self._space
