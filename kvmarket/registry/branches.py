"""A part of a space in one message: runs of blocks, each after those above it, with all their offers.

What is told so is linear in what stands: the tokens above a run are in it once, however many branches they have.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmarket.errors import MessageError, MissingBlockError
from kvmarket.flags import Flags
from kvmarket.registry.cursor import Visit
from kvmarket.registry.messages import Before, Snapshot
from kvmarket.registry.node import Node
from kvmarket.registry.offering import Offering, UInt64s, array_of
from kvmarket.registry.space import SLOT_BITS, SLOT_MASK, Space
from kvmarket.registry.standing import Pool, distinct
from kvmarket.registry.tokens import Int64s

RUN, OFFER = 4, 5  # integers of each, see `Snapshot`
STEP_OFFERINGS = 8  # put up in one step


class Writer:
    """Collects visits of a cursor into one message; the trie must not change meanwhile."""

    def __init__(self, space: Space, without: Collection[str]) -> None:
        """Of the pools `without` nothing is told."""
        self._space, self._without = space, without
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
        while self._above and self._above[-1][0] >= keep:
            self._above.pop()
        if keep and not (self._above and self._above[-1][1] is visit.above):
            before, keep = visit.path(), 0
            self._above = _path(visit.above)
        at = visit.depth - keep  # of its first block in the run
        offers = self._offers_of(visit.offers, at)
        self._above.append((visit.node.start(), visit.node))
        tenant = self._tenants.setdefault(visit.tenant.decode(), len(self._tenants))
        self._runs.append((tenant, keep, at + blocks, offers))
        self._tokens += (before, visit.tokens) if before else (visit.tokens,)
        self.nbytes += len(before) + len(visit.tokens) + 8 * (RUN + (OFFER + 1) * offers)

    def _offers_of(self, offers: Int64s, at: int) -> int:
        """Add the offers of consecutive blocks, the first of which is number `at` of its run; how many were added."""
        added = 0
        for row in offers[::-1]:
            for number in (int(row[0]) >> SLOT_BITS,) if len(row) == 1 else np.unique(row >> SLOT_BITS).tolist():
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


def put_branches(space: Space, message: Snapshot, but: Collection[str] = ()) -> Iterator[bool]:
    """Do to `space` what the message says, of its known pools `but` those, in steps of some 0.2 ms.

    Each step says whether anything was put up that did not stand already. Raises MessageError, before anything is done,
    where its parts do not fit each other or name slots that there are not.
    """
    reader = _Reader(space, message, but)
    yield False
    if reader.fresh.any():
        yield from reader.put()


class _Reader:
    """The parts of a message, checked, and which of its offers are fresh."""

    def __init__(self, space: Space, message: Snapshot, but: Collection[str]) -> None:
        self._space, self._message = space, message
        self._runs = _rows(message.runs, RUN)
        self._offers = _rows(message.offers, OFFER)
        self._sums = array_of(message.checksums, np.dtype(np.uint64)) if message.checksums else None
        self._pools = [None if name in but else space.pools.get(name) for name in message.pools]
        self._check()
        self.fresh: Flags = np.zeros(len(self._offers), np.bool_)
        for number, pool in enumerate(self._pools):
            if pool is not None:
                self._sort_out(pool, self._offers[:, 1] == number)

    def put(self) -> Iterator[bool]:
        """Put up what is fresh; says so behind every few offerings."""
        width, done = 4 * self._space.block_size, 0
        path: list[_Part] = []
        data, at, offer = self._message.tokens, 0, 0
        for tenant, keep, blocks, offers in self._runs.tolist():
            while path and path[-1].start >= keep:
                path.pop()
            if path and path[-1].end > keep:
                path[-1] = path[-1].cut(keep, width)
            part = _Part(keep, keep + blocks, data[at : at + blocks * width])
            for start, end in self._consecutive(offer, offer + offers):
                self._offer(path, part, self._message.tenants[tenant], start, end)
                done += 1
                if done % STEP_OFFERINGS == 0:
                    yield True
            path.append(part)
            at, offer = at + blocks * width, offer + offers
        yield bool(done)

    def _offer(self, path: list[_Part], part: _Part, tenant: str, start: int, end: int) -> None:
        """Offer the blocks of rows `start` .. `end`, which are consecutive blocks of `part` in one pool."""
        rows = self._offers[start:end]
        pool = self._pools[int(rows[0, 1])]
        assert pool is not None, "offers of pools that are not known are not fresh"
        first, width = int(rows[0, 0]), 4 * self._space.block_size
        own = part.tokens[: (first + len(rows)) * width]
        whole = Offering(
            pool.record.pool,
            tenant,
            np.frombuffer(own, np.int32),
            part.start + first,
            np.ascontiguousarray(rows[:, 2]),
            int(rows[0, 3]),
            rows[:, 4].astype(np.uint64),
            self._sums[start:end] if self._sums is not None and self._sums[start:end].any() else None,
        )
        if not path:
            self._space.offer(whole)
            return
        before = path[-1].before.get(pool.number) if not first else None
        if before is not None and pool.has(before):  # so the path need not be compared again
            with suppress(MissingBlockError):  # it was evicted
                self._space.offer(whole._replace(before=before))
                return
        tokens = np.frombuffer(b"".join([*(each.tokens for each in path), own]), np.int32)
        whole = whole._replace(tokens=tokens)
        self._space.offer(whole)
        if not first and (before := self._space.before(whole)) is not None:
            path[-1].before[pool.number] = before

    def _consecutive(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The rows among these that are fresh, cut where pool or epoch changes or a block does not follow."""
        if end - start == 1:
            if self.fresh[start]:
                yield start, end
            return
        rows, fresh = self._offers[start:end], self.fresh[start:end]
        goes_on = (np.diff(rows[:, 0]) == 1) & (np.diff(rows[:, 1]) == 0) & (np.diff(rows[:, 3]) == 0)
        edges = [0, *(np.flatnonzero(~(goes_on & fresh[1:] & fresh[:-1])) + 1).tolist(), end - start]
        for low, high in itertools.pairwise(edges):
            if low < high and fresh[low]:
                yield start + low, start + high

    def _sort_out(self, pool: Pool, mine: Flags) -> None:
        """Flag the offers of a pool that are fresh; note that those which stand were told."""
        slots, epochs, generations = self._offers[mine, 2], self._offers[mine, 3], self._offers[mine, 4]
        if len(slots) and int(slots.view(np.uint64).max()) >= len(pool.generations):
            raise MessageError(f"slots beyond the {len(pool.generations)} that pool {pool.record.pool} has")
        if len(distinct(slots)) < len(slots):
            raise MessageError(f"branches that name a slot of pool {pool.record.pool} twice")
        words = generations.astype(np.uint64)
        same = pool.same(slots, epochs, words)
        pool.see(slots[same])
        self.fresh[mine] = ~same & ~pool.newer(slots, epochs, words)

    def _check(self) -> None:
        """Raise MessageError unless the parts of the message fit each other."""
        runs, offers, message = self._runs, self._offers, self._message
        tenants, keeps, blocks, counts = runs.T
        depths = keeps + blocks
        sound = (
            len(runs)
            and (blocks > 0).all()
            and (runs >= 0).all()
            and int(tenants.max()) < len(message.tenants)
            and int(blocks.max()) < 1 << 31
            and int(blocks.sum()) * 4 * self._space.block_size == len(message.tokens)
            and int(counts.max()) <= len(offers)
            and int(counts.sum()) == len(offers)
            and keeps[0] == 0
            and (keeps[1:] <= depths[:-1]).all()
            and ((tenants[1:] == tenants[:-1]) | (keeps[1:] == 0)).all()
        )
        if sound and len(offers):
            own = offers[:, 0] < np.repeat(blocks, counts)
            sound = (offers >= 0).all() and own.all() and int(offers[:, 1].max()) < len(message.pools)
            sound = sound and (offers[:, 3:] > 0).all()
        if not sound or (self._sums is not None and len(self._sums) != len(offers)):
            raise MessageError("branches whose runs, tokens and offers do not fit each other")


class _Part:
    """The blocks `start` .. `end` of the path to the run under way, and by pool the offer that others go on from."""

    __slots__ = ("before", "end", "start", "tokens")

    def __init__(self, start: int, end: int, tokens: bytes) -> None:
        self.start, self.end, self.tokens = start, end, tokens
        self.before: dict[int, Before] = {}

    def cut(self, end: int, width: int) -> _Part:
        return _Part(self.start, end, self.tokens[: (end - self.start) * width])


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


def _rows(data: bytes, width: int) -> NDArray[Any]:
    """The integers of `data`, so many a row. Raises MessageError where there is no whole number of rows."""
    flat = array_of(data, np.dtype(np.int64))
    if len(flat) % width:
        raise MessageError(f"{len(flat)} integers are no whole number of rows of {width}")
    return flat.reshape(-1, width)
