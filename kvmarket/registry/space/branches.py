"""Write a part of a space into one `Snapshot` message: runs of blocks with all their offers.

A run follows the runs that it continues, so a shared prefix is in the message only once, however many branches it has:
the size of a snapshot is linear in the number of stored blocks and offers.
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
    """Collects visits of a cursor into one message. The trie must not change until `message` was called."""

    def __init__(self, space: Space, without: Collection[str]) -> None:
        """Leave out the offers of the pools `without`."""
        self._space, self._without = space, without
        self._tree_width = 4 * space.block_size
        self._tenants: dict[str, int] = {}
        self._pools: dict[str, int] = {}
        self._runs: list[tuple[int, int, int, int]] = []
        self._tokens: list[bytes] = []
        self._offers: list[Int64s] = []
        self._sums: list[UInt64s] = []
        self._few: list[tuple[int, int, int, int, int]] = []  # single offers that are not in `_offers` yet
        self._few_sums: list[int] = []
        self._above: list[tuple[int, Node]] = []  # nodes of the last run's path, each with the number of blocks before
        self.nbytes = 0

    @property
    def runs(self) -> int:
        """Number of runs in the message."""
        return len(self._runs)

    def add(self, visit: Visit) -> None:
        """Add the blocks of a visit. Costs a few us, and O(blocks before) if those are not in the message yet."""
        keep, blocks, before = visit.depth, visit.offers.shape[1], b""
        if not self.covers(keep, visit.above):
            before, keep = visit.path(), 0
            self._above = _path(visit.above)
        at = visit.depth - keep  # index of the visit's first block in its run
        offers = self._offers_of(visit.offers, at)
        self._above.append((visit.node.start(), visit.node))
        tenant = self._tenants.setdefault(visit.tenant.decode(), len(self._tenants))
        self._runs.append((tenant, keep, at + blocks, offers))
        self._tokens += (before, visit.tokens) if before else (visit.tokens,)
        self.nbytes += len(before) + len(visit.tokens) + 8 * (RUN + (OFFER + 1) * offers)

    def covers(self, depth: int, above: Node) -> bool:
        """Whether the prefix of `depth` blocks that ends in node `above` is in the message: a run can continue it."""
        while self._above and self._above[-1][0] >= depth:
            self._above.pop()
        return not depth or (bool(self._above) and self._above[-1][1] is above)

    def add_leaves(self, leaves: Leaves) -> None:
        """Add leaves; the message must cover the prefix before them (see `covers`). Costs 1 us each."""
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
        """Add the offers of consecutive blocks, of which the first has index `at` in its run; return their number."""
        added = 0
        for row in offers[::-1]:
            for number in (int(row[0]) >> SLOT_BITS,) if len(row) == 1 else distinct(row >> SLOT_BITS).tolist():
                pool = self._space.by_number.get(number)
                if pool is not None and pool.record.pool not in self._without:
                    name = self._pools.setdefault(pool.record.pool, len(self._pools))
                    added += self._offers_in(pool, name, row, at)
        return added

    def _offers_in(self, pool: Pool, name: int, row: Int64s, at: int) -> int:
        """Add the live offers of `pool` in a row; `name`: its index in the message. Return their number."""
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
        """Make the message of all that was added."""
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
    """The nodes from below the root down to this one, each with the number of blocks before it."""
    nodes: list[Node] = []
    above: Node | None = node
    while above is not None and above.size:
        nodes.append(above)
        above = above.parent
    starts = [0]
    for each in reversed(nodes):
        starts.append(starts[-1] + each.size)
    return list(zip(starts, reversed(nodes), strict=False))
