"""Which blocks a lender keeps. Pure decisions: no memory, no market.

A block is of use only behind all blocks before it, so only leaves are given up: blocks that no kept block continues.
When the memory is full, a new block takes the place of the least worthy of some leaves, unless that is worth more. What
a block is worth follows from how it has been used, and from how soon blocks with such a history were used again.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from kvmarket.bounds import check_count
from kvmarket.lend.reuse import ReuseTimes

LOOKS = 32  # leaves among which the least worthy one is given up
KNOWN = 8  # blocks that are remembered, for each one that can be kept
FEWEST_KNOWN, MOST_KNOWN = 1 << 16, 1 << 20  # but never fewer than can be kept
LEARN_SHARE, FEWEST_LEARN = 8, 512  # the worth is learned anew when a part of the memory, or so many, were asked for

# Classes. A new block behind one that was used before goes on with a conversation, or shares a document.
ALONE, BEHIND, USED_ONCE, USED_FEW, USED_SOME, USED_OFTEN = range(6)

Key = TypeVar("Key", bound=Hashable)


class Change(NamedTuple, Generic[Key]):
    """What to do for a prefix: give up the blocks `drop`, then take these of its blocks, in order."""

    take: list[Key]
    drop: list[Key]


class _Past(NamedTuple):
    """What is known of a block: its last use, its class since then, and how often it was used."""

    last: int
    kind: int
    uses: int


class Keeper(Generic[Key]):
    """The blocks that a lender keeps, at most `capacity`. A key names a block with all blocks before it.

    Not thread-safe. Remembers `KNOWN` times as many blocks as it can keep, within bounds, 250 bytes each.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        """Start with nothing. `seed`: of the choice of the leaves that are compared. Raises MisuseError."""
        check_count("capacity", capacity, 1)
        self.capacity = capacity
        self.pinned: set[Key] = set()  # blocks that are not given up for now; the caller changes it
        self._chance = random.Random(seed)
        self._times = ReuseTimes(USED_OFTEN + 1)
        self._past: OrderedDict[Key, _Past] = OrderedDict()  # the least recently used first
        self._now, self._learn_at = 0, 0
        self._before: dict[Key, Key | None] = {}  # kept block -> the one before it
        self._behind: dict[Key, int] = {}  # kept block -> how many kept ones continue it
        self._leaves: list[Key] = []
        self._places: dict[Key, int] = {}  # leaf -> its place in the list

    def __len__(self) -> int:
        """Number of kept blocks."""
        return len(self._before)

    def __contains__(self, key: object) -> bool:
        """Whether a block is kept."""
        return key in self._before

    def used(self, path: Sequence[Key], after: Key | None = None) -> Change[Key]:
        """Note that a request used these blocks, from the first block of its prompt on; decide what to keep of them.

        With `after`, the blocks go on from that block, up to which the same request was noted before. The keeper counts
        the change as made. Keys must not repeat. Costs about 5 us a block, and 50 us for each one that is given up.
        """
        kinds = self._note(path, after)
        take: list[Key] = []
        drop: list[Key] = []
        if after is not None and after not in self._before:
            return Change(take, drop)
        before = after
        for key, kind in zip(path, kinds, strict=True):
            if key not in self._before:
                if len(self._before) >= self.capacity:
                    found = self._least(before)
                    if found is None or found[0] > self._times.worth(kind, 0):
                        break
                    self._give_up(found[1])
                    drop.append(found[1])
                self._keep(key, before)
                take.append(key)
            before = key
        return Change(take, drop)

    def lost(self, keys: Sequence[Key]) -> None:
        """Note that these blocks of one prompt, in its order, could not be had; those that kept ones go on from stay.

        A block that stays counts as kept, though nobody has it; it is given up like any other.
        """
        for key in reversed(keys):
            if key in self._places:
                self._give_up(key)

    def resize(self, capacity: int) -> list[Key]:
        """Keep at most `capacity` blocks from now on; return those that are given up for that. Raises MisuseError.

        If pinned ones are in the way, more are kept until they are given up for others.
        """
        check_count("capacity", capacity, 1)
        self.capacity = capacity
        drop: list[Key] = []
        while len(self._before) > capacity and (found := self._least(None)) is not None:
            self._give_up(found[1])
            drop.append(found[1])
        return drop

    def _note(self, path: Sequence[Key], after: Key | None = None) -> list[int]:
        """Note the uses; return the class of each block from now on."""
        new = BEHIND if path and path[0] in self._past else ALONE
        if after is not None:
            past = self._past.get(after)
            new = ALONE if past is not None and past.kind == ALONE else BEHIND
        kinds = []
        for key in path:
            self._now += 1
            past = self._past.pop(key, None)
            if past is not None:
                self._times.again(past.kind, self._now - past.last)
            uses = past.uses if past is not None else 0
            kind = _kind(uses) if uses else new
            self._times.begin(kind)
            self._past[key] = _Past(self._now, kind, uses + 1)
            kinds.append(kind)
        known = max(FEWEST_KNOWN, self.capacity, min(KNOWN * self.capacity, MOST_KNOWN))
        while len(self._past) > known:
            self._past.popitem(last=False)
        if self._now >= self._learn_at:
            self._learn_at = self._now + max(FEWEST_LEARN, self.capacity // LEARN_SHARE)
            self._times.learn()
        return kinds

    def _least(self, but: Key | None) -> tuple[float, Key] | None:
        """The least worthy of some leaves, with its worth; None if there is none `but` this one and pinned ones."""
        found: tuple[float, Key] | None = None
        for _ in range(LOOKS):
            key = self._leaves[self._chance.randrange(len(self._leaves))]
            if key != but and key not in self.pinned:
                worth = self._worth(key)
                if found is None or worth < found[0]:
                    found = worth, key
        return found

    def _worth(self, key: Key) -> float:
        past = self._past.get(key)
        return 0.0 if past is None else self._times.worth(past.kind, self._now - past.last)

    def _keep(self, key: Key, before: Key | None) -> None:
        self._before[key], self._behind[key] = before, 0
        self._add_leaf(key)
        if before is not None:
            self._behind[before] += 1
            if self._behind[before] == 1:
                self._remove_leaf(before)

    def _give_up(self, key: Key) -> None:
        before = self._before.pop(key)
        del self._behind[key]
        self._remove_leaf(key)
        if before is not None:
            self._behind[before] -= 1
            if not self._behind[before]:
                self._add_leaf(before)

    def _add_leaf(self, key: Key) -> None:
        self._places[key] = len(self._leaves)
        self._leaves.append(key)

    def _remove_leaf(self, key: Key) -> None:
        place, last = self._places.pop(key), self._leaves.pop()
        if last != key:
            self._leaves[place], self._places[last] = last, place


def _kind(uses: int) -> int:
    """The class of a block that was used so often before."""
    return USED_ONCE if uses == 1 else USED_FEW if uses <= 3 else USED_SOME if uses <= 15 else USED_OFTEN
