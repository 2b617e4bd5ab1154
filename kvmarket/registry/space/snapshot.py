"""A snapshot of one or several spaces, made in small parts while the spaces change.

A receiver that applies every part, and in order with them every change since the first part, ends up with the present
state of the spaces.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from kvmarket.registry.protocol.messages import Change, PoolJoined, SnapshotEnd
from kvmarket.registry.space.branches import Writer
from kvmarket.registry.space.space import Space

PART_BYTES = 1 << 16  # about so many in one part
RECORD_BYTES = 1 << 20  # about so many of descriptions in one part
PART_RUNS = 128  # in one part: about 0.4 ms to make, 3 ms to add to an empty space
FIRST_RUNS = 16  # in the first part, which is slower to make: none of its memory is in a CPU cache
RUN_BYTES = 512  # each part repeats the prefix of its first run: a long prefix allows one run more per so many bytes


class SnapshotParts:
    """The offers and promises of `spaces`, a part at a time. Each part holds the state of the moment it is made."""

    def __init__(self, spaces: Sequence[Space], without: Collection[str] = ()) -> None:
        """Leave out the pools `without`. The others are described first; the end names those that are told whole."""
        self.done = False
        self._spaces, self._without = spaces, without
        self._parts = self._made()

    def part(self) -> tuple[Change, ...]:
        """Make the next part; `done` is true after the last one. Costs about 0.3 ms, and O(tokens before its runs)."""
        return next(self._parts)

    def _made(self) -> Iterator[tuple[Change, ...]]:
        for space in self._spaces:  # all of them first: a change that is told between two parts may name any pool
            yield from self._described(space)
        for space in self._spaces:
            yield from self._branches(space)
            promises = iter([each for each in space.promises if each.pool not in self._without])
            while batch := tuple(itertools.islice(promises, 1)):
                yield batch
        self.done = True
        pools = itertools.chain.from_iterable(space.pools.items() for space in self._spaces)
        told = [name for name, pool in pools if name not in self._without and pool.told]
        yield (SnapshotEnd(tuple(told)),)

    def _described(self, space: Space) -> Iterator[tuple[Change, ...]]:
        """The records of all pools, in one part unless they are very long, so that later changes name known pools."""
        part: list[Change] = []
        size = 0
        for name, pool in list(space.pools.items()):
            if name not in self._without:
                part.append(PoolJoined(pool.record))
                size += len(pool.record.description)
            if size > RECORD_BYTES:
                yield tuple(part)
                part, size = [], 0
        if part:
            yield tuple(part)

    def _branches(self, space: Space) -> Iterator[tuple[Change, ...]]:
        cursor, visit, most = space.trie.cursor(), None, min(FIRST_RUNS, PART_RUNS)
        while True:
            writer, nbytes, runs = Writer(space, self._without), PART_BYTES, most
            while writer.runs < runs and writer.nbytes < nbytes:
                visit = cursor.next()
                if visit is None:
                    break
                writer.add(visit)
                if writer.runs == 1:
                    nbytes = max(nbytes, 2 * writer.nbytes)
                    if most == PART_RUNS:
                        runs = max(runs, writer.nbytes // RUN_BYTES)
                if (leaves := cursor.leaves(runs - writer.runs, writer.covers)) is not None:
                    writer.add_leaves(leaves)
            if writer.runs:
                yield (writer.message(),)
                most = PART_RUNS
            if visit is None:
                return
