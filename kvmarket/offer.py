"""What is said about blocks: the offer of one, the description of a pool, the hit that a match returns.

All of it travels.
"""

from __future__ import annotations

import msgspec

from kvmarket.layout import Layout
from kvmarket.shared_file import Process, SharedFile
from kvmarket.transport import Memory


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """A block lies in `slot` of `pool`.

    Its bytes count only while the pool's epoch and the slot's generation are these.
    """

    pool: str
    slot: int
    epoch: int
    generation: int


class PoolDescriptor(msgspec.Struct, frozen=True):
    """A pool as other engines see it.

    How its slots lie, where its generations are, and its memory, one entry per tensor-parallel rank.
    """

    pool: str
    layout: Layout
    generations: SharedFile
    ranks: tuple[Memory, ...]

    @property
    def processes(self) -> tuple[Process, ...]:
        """The processes that the pool dies with."""
        return (self.generations.owner, *(memory.owner for memory in self.ranks))


class Hit(msgspec.Struct, frozen=True):
    """What `match` found: `blocks` whole blocks, from block `first` of the prompt on, worth `tokens` tokens.

    Zero is a valid answer.

    It says where the blocks were, not that they still are: `fetch` finds out.
    """

    tokens: int
    blocks: int
    first: int
    offers: tuple[Offer, ...]
    pools: dict[str, PoolDescriptor]

    def part(self, start: int, count: int) -> Hit:
        """Blocks `start` .. `start + count` of this hit, as a hit of its own with just the pools it needs."""
        offers = self.offers[start : start + count]
        size = self.tokens // self.blocks if self.blocks else 0
        used = {offer.pool for offer in offers}
        pools = {pool: self.pools[pool] for pool in used}
        return Hit(len(offers) * size, len(offers), self.first + start, offers, pools)
