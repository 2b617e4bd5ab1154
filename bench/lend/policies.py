"""Known policies for which blocks to keep, each for a tree of blocks: only leaves are given up.

LRU; ARC (Megiddo and Modha, FAST 2003); S3-FIFO (Yang and others, SOSP 2023); GreedyDual-Size-Frequency (Cherkasova,
1998), whose cost is that of computing the block; and the optimum, which knows the future (Belady, 1966). The last one
is optimal for blocks of a flat cache; for leaves of a tree it is a very good guess, not a bound.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from bench.lend.trace import BLOCK_TOKENS, Request
from bench.lend.tree import Ours, Tree

MOST_LOOKS = 256  # S3-FIFO: at blocks of one queue, to find one to give up
CHEAP_TOKENS = 25_000  # at this depth a token costs twice as much to compute as the first one (8B model, H200)
SMALL_SHARE, MOST_USES = 0.1, 3  # S3-FIFO: the small queue; what is counted of a block's uses


class LRU(Tree):
    """Least recently used first; of one request the last block first."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue: OrderedDict[int, None] = OrderedDict()

    def make_room(self, new: int, held: Collection[int]) -> bool:
        victim = self.first_free(self._queue, held)
        if victim is not None:
            del self._queue[victim]
            self.give_up(victim)
        return victim is not None

    def taken(self, block: int, depth: int) -> None:
        self._queue[block] = None

    def used(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._queue.move_to_end(block)


class ARC(Tree):
    """Blocks used once and blocks used more often, in shares that follow the uses of blocks given up lately."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._once: OrderedDict[int, None] = OrderedDict()
        self._often: OrderedDict[int, None] = OrderedDict()
        self._ghosts: tuple[OrderedDict[int, None], OrderedDict[int, None]] = OrderedDict(), OrderedDict()
        self._share = 0.0  # blocks for those used once

    def make_room(self, new: int, held: Collection[int]) -> bool:
        once, often = self._ghosts
        if new in once:
            self._share = min(self.capacity, self._share + max(1.0, len(often) / len(once)))
        elif new in often:
            self._share = max(0.0, self._share - max(1.0, len(once) / len(often)))
        order = [(self._once, once), (self._often, often)]
        if len(self._once) <= self._share:
            order.reverse()
        for queue, ghosts in order:
            victim = self.first_free(queue, held)
            if victim is not None:
                del queue[victim]
                self.give_up(victim)
                ghosts[victim] = None
                if len(ghosts) > self.capacity:
                    ghosts.popitem(last=False)
                return True
        return False

    def taken(self, block: int, depth: int) -> None:
        again = [ghosts.pop(block, 0) is None for ghosts in self._ghosts]
        (self._often if any(again) else self._once)[block] = None

    def used(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._once.pop(block, None)
            self._often[block] = None
            self._often.move_to_end(block)


class S3FIFO(Tree):
    """A small queue for new blocks, a main queue for those used again, and a memory of those that were not."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._uses: Counter[int] = Counter()

    def make_room(self, new: int, held: Collection[int]) -> bool:
        queues = [self._small, self._main]
        if len(self._small) <= SMALL_SHARE * self.capacity:
            queues.reverse()
        return any(self._make_room_in(queue, held) for queue in queues)

    def _make_room_in(self, queue: OrderedDict[int, None], held: Collection[int]) -> bool:
        small = queue is self._small
        for _ in range(min(MOST_LOOKS, (MOST_USES + 2) * len(queue))):
            if not queue:
                return False
            block, _ = queue.popitem(last=False)
            if not self.free(block, held):
                queue[block] = None  # again when the others have been looked at
            elif self._uses[block] > small:
                self._uses[block] -= not small
                self._main[block] = None
            else:
                self.give_up(block)
                del self._uses[block]
                if small:
                    self._ghosts[block] = None
                    if len(self._ghosts) > self.capacity:
                        self._ghosts.popitem(last=False)
                return True
        return False

    def taken(self, block: int, depth: int) -> None:
        (self._main if self._ghosts.pop(block, 0) is None else self._small)[block] = None

    def used(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._uses[block] = min(MOST_USES, self._uses[block] + 1)


class Ranked(Tree):
    """The leaf of the least value first. A heap of leaves, whose stale entries are dropped when they come up."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._heap: list[tuple[float, int]] = []

    def value(self, block: int) -> float:
        """What a block is worth. `push` it when this changes."""
        raise NotImplementedError

    def push(self, block: int) -> None:
        """Note the value of a kept block, if it is a leaf."""
        if not self.behind[block]:
            heapq.heappush(self._heap, (self.value(block), block))

    def _least(self, held: Collection[int], below: float) -> int | None:
        """The leaf of the least value that is not `held`; None if no value is `below` that one."""
        later, found = [], None
        while self._heap and self._heap[0][0] < below and found is None:
            value, block = heapq.heappop(self._heap)
            if self.behind.get(block) == 0 and value == self.value(block):  # else stale, or pushed when it is a leaf
                if block in held:
                    later.append((value, block))
                else:
                    found = block
        for entry in later:
            heapq.heappush(self._heap, entry)
        return found

    def bound(self, new: int) -> float:
        """Only a leaf of less value than this is given up for the block `new`."""
        return math.inf

    def make_room(self, new: int, held: Collection[int]) -> bool:
        victim = self._least(held, self.bound(new))
        if victim is not None:
            self.give_up(victim)
        return victim is not None

    def give_up(self, block: int) -> None:
        """As `Tree.give_up`; the block before may be a leaf now."""
        before = self.before[block]
        super().give_up(block)
        if before is not None:
            self.push(before)


class GDSF(Ranked):
    """The least value first: uses times the cost of computing the block, plus the value of what was given up last."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._clock = 0.0
        self._uses: Counter[int] = Counter()
        self._cost: dict[int, float] = {}
        self._value: dict[int, float] = {}

    def value(self, block: int) -> float:
        return self._value[block]

    def give_up(self, block: int) -> None:
        super().give_up(block)
        self._clock = self._value.pop(block)
        del self._uses[block], self._cost[block]

    def taken(self, block: int, depth: int) -> None:
        self._cost[block] = 1 + depth * BLOCK_TOKENS / CHEAP_TOKENS
        self.used((block,))

    def used(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._uses[block] += 1
            self._value[block] = self._clock + self._uses[block] * self._cost[block]
            self.push(block)


class Optimum(Ranked):
    """What is used last in the future first; a new block is not taken if that is itself."""

    def __init__(self, capacity: int, requests: Sequence[Request]) -> None:
        super().__init__(capacity)
        self._uses: dict[int, list[int]] = {}  # when each block will be used, the last use first
        for at in range(len(requests) - 1, -1, -1):
            for block in requests[at].blocks:
                self._uses.setdefault(block, []).append(at)

    def value(self, block: int) -> float:
        """The later the next use, the less."""
        uses = self._uses[block]
        return -uses[-1] if uses else -math.inf

    def begin(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._uses[block].pop()
            if block in self.before:
                self.push(block)

    def bound(self, new: int) -> float:
        return self.value(new)

    def taken(self, block: int, depth: int) -> None:
        self.push(block)

    def used(self, blocks: Iterable[int]) -> None:
        pass


POLICIES: dict[str, Callable[[int, Sequence[Request]], Tree | Ours]] = {
    "LRU": lambda capacity, _: LRU(capacity),
    "ARC": lambda capacity, _: ARC(capacity),
    "S3-FIFO": lambda capacity, _: S3FIFO(capacity),
    "GDSF": lambda capacity, _: GDSF(capacity),
    "kvmarket": lambda capacity, _: Ours(capacity),
    "optimum": Optimum,
}
