"""Parts of prefixes, and copies of them that are under way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kvmarket.lend.segment import Segment
from kvmarket.market.fetch import Fetch
from kvmarket.market.offer import Hit
from kvmarket.pool import Slots, UInt64s
from kvmarket.registry.trie.tokens import Int32s


class Part(NamedTuple):
    """Blocks `first` ... of the prefix `tokens`, which ends with the last of them, and their keys.

    `again`: whether to copy them has failed once.
    """

    tenant: str
    tokens: Int32s
    first: int
    keys: Sequence[bytes]
    again: bool = False


class Pull(NamedTuple):
    """A copy under way of a part of a prefix into slots of a segment, by each rank."""

    part: Part
    segment: Segment
    slots: Slots
    checksums: UInt64s | None
    fetches: Sequence[Fetch]


def runs_of(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The ranges of consecutive true flags."""
    edges = np.flatnonzero(np.diff(np.array([False, *flags, False])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def checksums_of(hit: Hit, start: int, count: int) -> UInt64s | None:
    """The checksums that are known of blocks of a hit, zero for others; None if none is known."""
    runs = hit.part(start, count)
    if all(run.checksums is None for run in runs):
        return None
    return np.concatenate([np.zeros(len(run), np.uint64) if run.checksums is None else run.checksums for run in runs])
