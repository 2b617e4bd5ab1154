"""Apply a `Snapshot` message to a space: offers that the space has are marked as seen, the others are added."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmarket.errors import MessageError, MissingBlockError
from kvmarket.registry.protocol.messages import Before, Snapshot
from kvmarket.registry.protocol.offering import Offering, array_of
from kvmarket.registry.space.branches import OFFER, RUN
from kvmarket.registry.space.lookup import before as offered_before
from kvmarket.registry.space.space import Space
from kvmarket.registry.space.standing import Pool
from kvmarket.support.flags import Flags
from kvmarket.support.sets import distinct

STEP_OFFERINGS, STEP_LEAVES = 8, 32  # added in one step


def put_branches(space: Space, message: Snapshot, but: Collection[str] = ()) -> Iterator[bool]:
    """Apply `message` to `space` in steps of about 0.2 ms; leave out unknown pools and the pools `but`.

    Each step yields whether it added offers that the space did not have. Raises MessageError, before any offer is
    added, if the parts of the message do not fit together, or name a slot twice or one that its pool does not have.
    """
    reader = _Reader(space, message, but)
    yield False
    if reader.fresh.any():
        yield from reader.put()


class _Reader:
    """The checked parts of a message. `fresh` flags offers that are new to the space; known ones are marked as seen."""

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
        """Add the fresh offers; yield after every few of them."""
        width, done = 4 * self._space.block_size, 0
        path: list[_Part] = []
        data, at, offer = self._message.tokens, 0, 0
        rows, ends = self._runs.tolist(), self._siblings()
        for number, (tenant, keep, blocks, offers) in enumerate(rows):
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
            if number < ends[number] and path:
                for first in range(1, ends[number] - number + 1, STEP_LEAVES):
                    last = min(first + STEP_LEAVES, ends[number] - number + 1)
                    self._fan(path, self._message.tenants[tenant], data[at:], offer, first, last)
                    yield True
            path.append(part)
            at, offer = at + blocks * width, offer + offers
        yield bool(done)

    def _siblings(self) -> list[int]:
        """For each run that is the first of several siblings, the index of the last of them; for others its own index.

        Siblings are consecutive runs of one block with one offer each that continue the same block.
        """
        tenants, keeps, blocks, counts = self._runs.T
        single = (blocks == 1) & (counts == 1)
        alike = single[1:] & single[:-1] & (keeps[1:] == keeps[:-1]) & (tenants[1:] == tenants[:-1])
        ends = list(range(len(single)))
        edges = np.flatnonzero(np.diff(alike, prepend=False, append=False))
        for start, end in edges.reshape(-1, 2).tolist():
            ends[start] = end
        return ends

    def _fan(self, path: list[_Part], tenant: str, data: bytes, offer: int, first: int, last: int) -> None:
        """Add sibling runs number `first` .. `last` after the one with offer `offer`, all at once where possible.

        Those that were added are no longer fresh; `put` adds the others one by one.
        """
        width = 4 * self._space.block_size
        rows, fresh = self._offers[offer + first : offer + last], self.fresh[offer + first : offer + last]
        for number, pool in enumerate(self._pools):
            before = path[-1].before.get(pool.number) if pool is not None else None
            mine = np.flatnonzero(fresh & (rows[:, 1] == number))
            if pool is None or before is None or len(mine) < 2 or len(set(rows[mine, 3].tolist())) > 1:
                continue
            tokens = b"".join([data[(first + at) * width : (first + at + 1) * width] for at in mine.tolist()])
            sums = None if self._sums is None else self._sums[offer + first + mine]
            offering = Offering(
                pool.record.pool,
                tenant,
                np.frombuffer(tokens, np.int32),
                path[-1].end,
                np.ascontiguousarray(rows[mine, 2]),
                int(rows[mine[0], 3]),
                rows[mine, 4].astype(np.uint64),
                sums if sums is not None and sums.any() else None,
                before,
            )
            with suppress(MissingBlockError):  # the block that they continue was evicted
                if self._space.fan(offering):
                    self.fresh[offer + first + mine] = False

    def _offer(self, path: list[_Part], part: _Part, tenant: str, start: int, end: int) -> None:
        """Add the offers of rows `start` .. `end`, which are of consecutive blocks of `part` in one pool."""
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
        if before is not None and pool.has(before):  # then the prefix need not be compared again
            with suppress(MissingBlockError):  # that block was evicted
                self._space.offer(whole._replace(before=before))
                return
        tokens = np.frombuffer(b"".join([*(each.tokens for each in path), own]), np.int32)
        whole = whole._replace(tokens=tokens)
        self._space.offer(whole)
        if not first and (found := offered_before(self._space, whole)) is not None:
            path[-1].before[pool.number] = found

    def _consecutive(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of fresh rows, cut where the pool or the epoch changes or the blocks are not consecutive."""
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
        """Flag the fresh offers of a pool, and mark its known offers as seen. Raises MessageError for wrong slots."""
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
        """Raise MessageError unless the parts of the message fit together."""
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
    """Blocks `start` .. `end` of the present run's prefix. `before`: pool number -> offer of the last of them."""

    __slots__ = ("before", "end", "start", "tokens")

    def __init__(self, start: int, end: int, tokens: bytes) -> None:
        self.start, self.end, self.tokens = start, end, tokens
        self.before: dict[int, Before] = {}

    def cut(self, end: int, width: int) -> _Part:
        return _Part(self.start, end, self.tokens[: (end - self.start) * width])


def _rows(data: bytes, width: int) -> NDArray[Any]:
    """View `data` as int64 rows of `width` integers. Raises MessageError unless it is a whole number of rows."""
    flat = array_of(data, np.dtype(np.int64))
    if len(flat) % width:
        raise MessageError(f"{len(flat)} integers are no whole number of rows of {width}")
    return flat.reshape(-1, width)
