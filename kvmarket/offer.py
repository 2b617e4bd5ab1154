"""What is said about blocks: the description of a pool, and the hit that a match returns, made of runs of offers.

All of it travels.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kvmarket.layout import Layout
from kvmarket.pool.slots import Slots, UInt64s
from kvmarket.shared_file import Process, SharedFile
from kvmarket.transport import Memory


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


@dataclass(frozen=True, eq=False)
class Offers:
    """Offers of consecutive blocks in one pool: block i lies in ``slots[i]``.

    Its bytes count only while the pool's epoch is ``epoch`` and the slot's generation is ``generations[i]``, and only
    if they have checksum ``checksums[i]`` (see kernels/checksum.py), where there is one and it is not zero. All three
    have one element per block; do not write to them.
    """

    pool: str
    epoch: int
    slots: Slots
    generations: UInt64s
    checksums: UInt64s | None

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, start: int, end: int) -> Offers:
        """Blocks ``start`` .. ``end`` of these: views, no copies."""
        if start == 0 and end >= len(self.slots):
            return self
        part = slice(start, end)
        checksums = None if self.checksums is None else self.checksums[part]
        return Offers(self.pool, self.epoch, self.slots[part], self.generations[part], checksums)


@dataclass(frozen=True, eq=False)
class Hit:
    """What `match` found: `blocks` whole blocks, from block `first` of the prompt on, worth `tokens` tokens.

    Zero is a valid answer. It says where the blocks were, not that they still are: `fetch` finds out.
    """

    tokens: int
    blocks: int
    first: int
    runs: tuple[Offers, ...]  # in block order
    pools: dict[str, PoolDescriptor]

    def part(self, start: int, count: int) -> tuple[Offers, ...]:
        """The offers of blocks `start` .. `start + count` of this hit."""
        parts = []
        for run in self.runs:
            low, high = max(start, 0), min(start + count, len(run))
            if low < high:
                parts.append(run.part(low, high))
            start -= len(run)
        return tuple(parts)
