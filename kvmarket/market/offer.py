"""The types that travel: the descriptor of a pool, offers of consecutive blocks, and the hit that `match` returns."""

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
from kvmarket.transport import Memory, decode_memory


class Stage(msgspec.Struct, frozen=True):
    """The tensor-parallel ranks of one pipeline stage: their common layout, and each rank's memory."""

    layout: Layout
    ranks: Annotated[tuple[Memory, ...], msgspec.Meta(min_length=1)]


class PoolDescriptor(msgspec.Struct, frozen=True):
    """A pool as other engines see it: its generations, and its stages (one, unless the engine is pipelined).

    Names memory, owns none. The ranks of a pool are those of its stages, one stage after another. `lent`: whether it is
    a lender's. `far`: whether reading it takes longer than reading an engine's own memory. Raises LayoutError if the
    stages differ in the number of slots or in the tokens of a block.
    """

    pool: str
    generations: SharedFile
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1)]
    lent: bool = False
    far: bool = False

    def __post_init__(self) -> None:
        check_stages(self.stages)

    @property
    def slots(self) -> int:
        """Number of slots, the same in every rank."""
        return self.stages[0].layout.slots

    @property
    def processes(self) -> tuple[Process, ...]:
        """The owners of the pool's memory: if one of them dies, the pool is gone."""
        return (self.generations.owner, *(memory.owner for _, memory in self.ranks))

    @property
    def files(self) -> tuple[SharedFile, ...]:
        """All shared memory of the pool: its generations, then that of each rank."""
        return (self.generations, *(file for _, memory in self.ranks for file in memory.shared_files))

    def held_by(self, process: Process, descriptors: Sequence[int]) -> PoolDescriptor:
        """The same pool, with its `files` named by `descriptors` of `process`, in the same order.

        Raises LayoutError if their number differs.
        """
        if len(descriptors) != len(self.files):
            raise LayoutError(f"{len(descriptors)} descriptors of pool {self.pool}, which has {len(self.files)} files")
        left = iter(descriptors)
        generations = self.generations.held_by(process, next(left))
        stages = [
            Stage(stage.layout, tuple(each.held_by(process, left) for each in stage.ranks)) for stage in self.stages
        ]
        return PoolDescriptor(self.pool, generations, tuple(stages), self.lent, self.far)

    @property
    def ranks(self) -> tuple[tuple[Layout, Memory], ...]:
        """Layout and memory of each rank."""
        return tuple((stage.layout, memory) for stage in self.stages for memory in stage.ranks)


_decoder = msgspec.msgpack.Decoder(PoolDescriptor, dec_hook=decode_memory)


def descriptor_of(description: bytes) -> PoolDescriptor:
    """Decode the description of a pool (see `PoolRecord`). Raises LayoutError, or what msgspec raises."""
    return _decoder.decode(description)


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise LayoutError unless all stages have the same slots and block size, within the limits of the protocol."""
    for stage in stages:
        check_size(stage.layout)
    sizes = {(stage.layout.slots, stage.layout.block_size) for stage in stages}
    if len(sizes) != 1:
        raise LayoutError(
            f"stages of {' and '.join(f'{slots} slots of {tokens} tokens' for slots, tokens in sorted(sizes))}; "
            "give every rank of an engine a cache of the same slots and block size"
        )


def geometry_of(stages: Sequence[Stage]) -> str:
    """One text for the geometries of all stages: equal exactly when all geometries are equal."""
    return shortened(" | ".join(stage.layout.geometry() for stage in stages))


class Offers(msgspec.Struct, frozen=True, eq=False):
    """Offers of consecutive blocks in one pool: block i lies in ``slots[i]``.

    The bytes of block i are valid only while the pool's epoch is ``epoch`` and the slot's generation is
    ``generations[i]``, and only if their checksum is ``checksums[i]`` (see kernels/checksum.py; None or 0: unknown).
    The arrays have one element per block; do not write to them.
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
    """The result of `match`: `blocks` whole blocks, from block `first` of the prompt on, which are `tokens` tokens.

    Zero is a valid answer. A hit says where the blocks were at that time; `fetch` checks whether they still are.
    """

    tokens: int
    blocks: int
    first: int
    runs: tuple[Offers, ...]  # in block order
    pools: dict[str, PoolDescriptor]
    fingerprint: str = ""  # fingerprint and tenant of the match: only they may fetch the blocks
    tenant: str = ""
    prefix: Int32s | None = None  # the tokens of all blocks from the prompt's start on; None if not kept

    def part(self, start: int, count: int) -> tuple[Offers, ...]:
        """The offers of blocks `start` .. `start + count` of this hit."""
        parts = []
        for run in self.runs:
            low, high = max(start, 0), min(start + count, len(run))
            if low < high:
                parts.append(run.part(low, high))
            start -= len(run)
        return tuple(parts)
