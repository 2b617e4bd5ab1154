"""A cache of blocks of which each is of use only behind all blocks before it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from bench.lend.trace import leading
from kvmarket.lend.keeper import Keeper


class Tree:
    """At most `capacity` kept blocks, each behind the block before it. `request` is what a policy adds."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.before: dict[int, int | None] = {}
        self.behind: dict[int, int] = {}  # how many kept blocks continue it

    def request(self, blocks: Sequence[int]) -> int:
        """Number of leading blocks that were kept; then all are used, and taken as the policy likes."""
        found = leading(blocks, self.before)
        held, before = frozenset(blocks), None
        self.begin(blocks)
        for depth, block in enumerate(blocks):
            if block not in self.before:
                if len(self.before) >= self.capacity and not self.make_room(block, held):
                    break
                self.before[block], self.behind[block] = before, 0
                if before is not None:
                    self.behind[before] += 1
                self.taken(block, depth)
            before = block
        self.used(blocks[found - 1 :: -1] if found else ())
        return found

    def begin(self, blocks: Sequence[int]) -> None:
        """A request for these blocks begins."""

    def make_room(self, new: int, held: Collection[int]) -> bool:
        """Give up a leaf that is not `held`, for the block `new`; False if there is none, or none is worth less."""
        raise NotImplementedError

    def taken(self, block: int, depth: int) -> None:
        """A block was taken, and is kept now."""
        raise NotImplementedError

    def used(self, blocks: Iterable[int]) -> None:
        """These kept blocks were used, the last one of the prompt first."""
        raise NotImplementedError

    def free(self, block: int, held: Collection[int]) -> bool:
        """Whether a kept block may be given up."""
        return not self.behind[block] and block not in held

    def give_up(self, block: int) -> None:
        """Keep a leaf no longer."""
        before = self.before.pop(block)
        del self.behind[block]
        if before is not None:
            self.behind[before] -= 1

    def first_free(self, queue: Iterable[int], held: Collection[int]) -> int | None:
        """The first block of a queue that may be given up."""
        return next((block for block in queue if self.free(block, held)), None)


class Ours:
    """The keeper of `kvmarket lend`."""

    def __init__(self, capacity: int) -> None:
        self._keeper: Keeper[int] = Keeper(capacity)

    def request(self, blocks: Sequence[int]) -> int:
        """As `Tree.request`."""
        found = leading(blocks, self._keeper)
        self._keeper.used(blocks)
        return found
