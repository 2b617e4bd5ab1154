"""A part of a space in one message: runs of blocks, each after those above it, with all their offers.

What is told so is linear in what stands: the tokens above a run are in it once, however many branches they have.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kvmarket.registry.protocol.messages import Snapshot
from kvmarket.registry.protocol.offering import UInt64s
from kvmarket.registry.space.space import SLOT_BITS, SLOT_MASK, Space
from kvmarket.registry.space.standing import Pool
from kvmarket.registry.trie.cursor import Leaves, Visit
from kvmarket.registry.trie.node import Node
from kvmarket.registry.trie.tokens import Int64s
from kvmarket.support.sets import distinct

RUN, OFFER = 4, 5  # integers of each, see `Snapshot`


class Writer:
    """Collects visits of a cursor into one message; the trie must not change meanwhile."""

    def __init__(self, space: Space, without: Collection[str]) -> None:
        """Of the pools `without` nothing is told."""
        self._space, self._without = space, without
        self._tree_width = 4 * space.block_size
        self._tenants: dict[str, int] = {}
        self._pools: dict[str, int] = {}
        self._runs: list[tuple[int, int, int, int]] = []
        self._tokens: list[bytes] = []
        self._offers: list[Int64s] = []
        self._sums: list[UInt64s] = []
        self._few: list[tuple[int, int, int, int, int]] = []  # offers that are in none of the arrays yet
        self._few_sums: list[int] = []
        self._above: list[tuple[int, Node]] = []  # nodes of the last run's path, and how many blocks come before each
        self.nbytes = 0

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(self._runs)

    def add(self, visit: Visit) -> None:
        """Tell of the blocks of a visit. Costs some us, and O(blocks above) where they are not in the message yet."""
        keep, blocks, before = visit.depth, visit.offers.shape[1], b""
        if not self.covers(keep, visit.above):
            before, keep = visit.path(), 0
            self._above = _path(visit.above)
        at = visit.depth - keep  # of its first block in the run
        offers = self._offers_of(visit.offers, at)
        self._above.append((visit.node.start(), visit.node))
        tenant = self._tenants.setdefault(visit.tenant.decode(), len(self._tenants))
        self._runs.append((tenant, keep, at + blocks, offers))
        self._tokens += (before, visit.tokens) if before else (visit.tokens,)
        self.nbytes += len(before) + len(visit.tokens) + 8 * (RUN + (OFFER + 1) * offers)

    def covers(self, depth: int, above: Node) -> bool:
        """Whether a run may follow that goes on at `depth` behind `above`: what is above it is in the message."""
        while self._above and self._above[-1][0] >= depth:
            self._above.pop()
        return not depth or (bool(self._above) and self._above[-1][1] is above)

    def add_leaves(self, leaves: Leaves) -> None:
        """Tell of leaves, where the message `covers` what is above them. Costs 1 us each."""
        tenant = self._tenants.setdefault(leaves.tenant.decode(), len(self._tenants))
        numbers, slots = leaves.offers >> SLOT_BITS, leaves.offers & SLOT_MASK
        self._flush()
        for number in distinct(numbers).tolist():
            pool = self._space.by_number.get(number)
            if pool is None or pool.record.pool in self._without:
                continue
            mine = np.flatnonzero(numbers == number)
            mine = mine[pool.generations[slots[mine]] != 0]
            name, these = self._pools.setdefault(pool.record.pool, len(self._pools)), slots[mine]
            generations, named = pool.generations[these].astype(np.int64), np.full(len(mine), name)
            self._offers.append(np.stack([0 * these, named, these, pool.epochs[these], generations], axis=1))
            self._sums.append(pool.checksums[these])
            self._runs += [(tenant, leaves.depth, 1, 1)] * len(mine)
            self._tokens += [leaves.tokens[at] for at in mine.tolist()]
            self.nbytes += len(mine) * (self._tree_width + 8 * (RUN + OFFER + 1))

    def _offers_of(self, offers: Int64s, at: int) -> int:
        """Add the offers of consecutive blocks, the first of which is number `at` of its run; how many were added."""
        added = 0
        for row in offers[::-1]:
            for number in (int(row[0]) >> SLOT_BITS,) if len(row) == 1 else distinct(row >> SLOT_BITS).tolist():
                pool = self._space.by_number.get(number)
                if pool is not None and pool.record.pool not in self._without:
                    name = self._pools.setdefault(pool.record.pool, len(self._pools))
                    added += self._offers_in(pool, name, row, at)
        return added

    def _offers_in(self, pool: Pool, name: int, row: Int64s, at: int) -> int:
        """Add those of a row of offers that stand in `pool`, the pool called `name`; how many these are."""
        if len(row) == 1:  # numpy would take ten times as long
            slot = int(row[0]) & SLOT_MASK
            if generation := int(pool.generations[slot]):
                self._few.append((at, name, slot, int(pool.epochs[slot]), generation))
                self._few_sums.append(int(pool.checksums[slot]) if pool.summed else 0)
            return int(generation > 0)
        blocks = np.flatnonzero(row >> SLOT_BITS == pool.number)
        slots = row[blocks] & SLOT_MASK
        stands = pool.generations[slots] != 0
        blocks, slots = blocks[stands], slots[stands]
        named = np.full(len(slots), name)
        generations = pool.generations[slots].astype(np.int64)
        self._flush()
        self._offers.append(np.stack([blocks + at, named, slots, pool.epochs[slots], generations], axis=1))
        self._sums.append(pool.checksums[slots])
        return len(slots)

    def _flush(self) -> None:
        if self._few:
            self._offers.append(np.array(self._few, np.int64))
            self._sums.append(np.array(self._few_sums, np.uint64))
            self._few, self._few_sums = [], []

    def message(self) -> Snapshot:
        """All of it."""
        self._flush()
        summed = any(sums.any() for sums in self._sums)
        return Snapshot(
            tuple(self._tenants),
            tuple(self._pools),
            np.array(self._runs, np.int64).tobytes(),
            b"".join(self._tokens),
            b"".join(offers.tobytes() for offers in self._offers),
            b"".join(sums.tobytes() for sums in self._sums) if summed else b"",
        )


def _path(node: Node) -> list[tuple[int, Node]]:
    """This node and those above it but the root, from the top, and how many blocks come before each."""
    nodes: list[Node] = []
    above: Node | None = node
    while above is not None and above.size:
        nodes.append(above)
        above = above.parent
    starts = [0]
    for each in reversed(nodes):
        starts.append(starts[-1] + each.size)
    return list(zip(starts, reversed(nodes), strict=False))
