"""What is said about blocks: the description of a pool, and the hit that a match returns, made of runs of offers.

All of it travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from kvmarket.bounds import check_size, shortened
from kvmarket.errors import LayoutError
from kvmarket.layout.layout import Layout
from kvmarket.pool.slots import Slots, UInt64s
from kvmarket.processes.shared_file import Process, SharedFile
from kvmarket.registry.trie.tokens import Int32s
from kvmarket.transport import Memory


class Stage(msgspec.Struct, frozen=True):
    """Ranks of a pool whose slots lie alike: the tensor-parallel ranks of a pipeline stage, which has its own layers.

    How their slots lie, and each one's memory.
    """

    layout: Layout
    ranks: Annotated[tuple[Memory, ...], msgspec.Meta(min_length=1)]


class PoolDescriptor(msgspec.Struct, frozen=True):
    """A pool as other engines see it: where its generations are, and its stages, one unless the engine is pipelined.

    The ranks of a pool are those of its stages, one stage after another. Raises LayoutError if the stages disagree
    about how many slots there are or how many tokens a block has.
    """

    pool: str
    generations: SharedFile
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        check_stages(self.stages)

    @property
    def slots(self) -> int:
        """How many slots every rank has."""
        return self.stages[0].layout.slots

    @property
    def processes(self) -> tuple[Process, ...]:
        """The processes that the pool dies with."""
        return (self.generations.owner, *(memory.owner for _, memory in self.ranks))

    @property
    def files(self) -> tuple[SharedFile, ...]:
        """All shared memory of the pool: its generations, then that of each rank."""
        return (self.generations, *(file for _, memory in self.ranks for file in memory.shared_files))

    def held_by(self, process: Process, descriptors: Sequence[int]) -> PoolDescriptor:
        """The same pool, its `files` named by descriptors of a process beside us. Raises LayoutError for others."""
        if len(descriptors) != len(self.files):
            raise LayoutError(f"{len(descriptors)} descriptors of pool {self.pool}, which has {len(self.files)} files")
        left = iter(descriptors)
        generations = self.generations.held_by(process, next(left))
        stages = [
            Stage(stage.layout, tuple(each.held_by(process, left) for each in stage.ranks)) for stage in self.stages
        ]
        return PoolDescriptor(self.pool, generations, tuple(stages))

    @property
    def ranks(self) -> tuple[tuple[Layout, Memory], ...]:
        """Per rank how its slots lie, and where."""
        return tuple((stage.layout, memory) for stage in self.stages for memory in stage.ranks)


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise LayoutError unless the stages hold the same blocks: a slot is one place in all of them.

    So many that they can be named.
    """
    for stage in stages:
        check_size(stage.layout)
    sizes = {(stage.layout.slots, stage.layout.block_size) for stage in stages}
    if len(sizes) != 1:
        raise LayoutError(
            f"stages of {' and '.join(f'{slots} slots of {tokens} tokens' for slots, tokens in sorted(sizes))}; "
            "give every rank of an engine a cache of the same slots and block size"
        )


def geometry_of(stages: Sequence[Stage]) -> str:
    """One text for the geometries of all stages, equal exactly when all of them are."""
    return shortened(" | ".join(stage.layout.geometry() for stage in stages))


class Offers(msgspec.Struct, frozen=True, eq=False):
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


class Hit(msgspec.Struct, frozen=True, eq=False):
    """What `match` found: `blocks` whole blocks, from block `first` of the prompt on, worth `tokens` tokens.

    Zero is a valid answer. It says where the blocks were, not that they still are: `fetch` finds out.
    """

    tokens: int
    blocks: int
    first: int
    runs: tuple[Offers, ...]  # in block order
    pools: dict[str, PoolDescriptor]
    fingerprint: str = ""  # and tenant, of whom it was matched for: nobody else may take the blocks
    tenant: str = ""
    prefix: Int32s | None = None  # the tokens of all blocks from the prompt's first on, where they are kept

    def part(self, start: int, count: int) -> tuple[Offers, ...]:
        """The offers of blocks `start` .. `start + count` of this hit."""
        parts = []
        for run in self.runs:
            low, high = max(start, 0), min(start + count, len(run))
            if low < high:
                parts.append(run.part(low, high))
            start -= len(run)
        return tuple(parts)
