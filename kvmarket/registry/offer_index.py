"""From an offer to the trie nodes that may hold it: what makes taking an offer down cheap."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvmarket.flags import leading
from kvmarket.registry.tokens import Int64s

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_HIGH = int(sys.byteorder == "little")  # which half of a word has its upper bits
_LEAST, _LITTLE = 4096, 1 << 18  # entries


class OfferIndex:
    """A multimap from offers to node numbers that is allowed to say too much, never too little.

    Entries are only ever appended: whoever asks looks into the node whether the offer is (still) there. So a removal
    leaves entries behind, and so does a node that is cut in two. When the room is used up, the owner hands over
    everything that is alive (`reset`).

    12 bytes an entry (32 bits of hash, node, next entry of the bucket), 4 a bucket. Room is 1.5 times what was alive at
    the last reset, so a steady state costs some 16 to 24 bytes an offer, and resets cost O(1) an added offer,
    amortized. Where that is little memory it is more, up to eight times: all replicas of a market come to their resets
    with the same offer, and each takes as long as some five offers of 64 blocks do.
    """

    __slots__ = ("_hashes", "_heads", "_next", "_numbers", "_used")

    def __init__(self) -> None:
        self.reset(0)

    def __len__(self) -> int:
        """Return the number of entries, dead ones included. Cost: O(1)."""
        return self._used

    def reset(self, alive: int) -> None:
        """Forget everything and make room for `alive` offers and at least half as many; the owner then adds them all.

        Cost: O(alive), a few ns an offer; adding them costs some 20 ns an offer.
        """
        room = max(_LEAST, alive * 3 // 2, min(8 * alive, _LITTLE))
        self._heads = np.full(1 << (room.bit_length() - 1), -1, np.int32)
        self._hashes = np.empty(room, np.uint32)
        self._next = np.empty(room, np.int32)
        self._numbers = np.empty(room, np.int32)
        self._used = 0

    def add(self, offers: Int64s, numbers: NDArray[np.int32] | int) -> bool:
        """Note in which node (or nodes, one for each) these offers are. False, and nothing noted, if there is no room.

        Cost: O(n), a dozen numpy calls.
        """
        start, end = self._used, self._used + offers.size
        if end > self._next.size:
            return False
        if offers.size == 1 and isinstance(numbers, int):
            wanted = _hash_one(int(offers[0]))
            bucket = wanted & (self._heads.size - 1)
            self._hashes[start], self._numbers[start], self._next[start] = wanted, numbers, self._heads[bucket]
            self._heads[bucket], self._used = start, end
            return True
        hashes = _hash(offers)
        self._hashes[start:end] = hashes
        self._numbers[start:end] = numbers
        self._used = end
        heads, entries = self._heads, np.arange(start, end, dtype=np.int32)
        buckets = hashes & np.uint32(heads.size - 1)
        self._next[start:end] = heads.take(buckets)
        while True:  # each is linked in front of its bucket; of several for one bucket, one a round
            heads[buckets] = entries
            linked = heads.take(buckets) == entries
            if leading(linked) == linked.size:
                return True
            entries, buckets = entries[~linked], buckets[~linked]
            self._next[entries] = heads.take(buckets)

    def nodes(self, offer: int) -> Iterator[int]:
        """Yield the numbers of every node that holds this offer, and of some that do not; the last one noted first.

        As `find`, of one and without numpy; do not change the index meanwhile. Cost: 1 us for each link of its chain.
        """
        wanted = _hash_one(offer)
        at = int(self._heads[wanted & (self._heads.size - 1)])
        while at >= 0:
            if self._hashes[at] == wanted:
                yield int(self._numbers[at])
            at = int(self._next[at])

    def find(self, offers: Int64s) -> tuple[Int64s, NDArray[np.int32]]:
        """Return pairs (offer, node number) as two arrays: every node that holds one of these, and some that do not.

        Cost: O(n) expected, a dozen numpy calls for each link of the longest chain.
        """
        hashes = _hash(offers)
        at = self._heads[hashes & np.uint32(self._heads.size - 1)]
        found, numbers = [offers[:0]], [self._numbers[:0]]
        while True:
            linked = at >= 0
            if leading(linked) < linked.size:
                at, hashes, offers = at[linked], hashes[linked], offers[linked]
            if not at.size:
                return np.concatenate(found), np.concatenate(numbers)
            same = self._hashes[at] == hashes
            found.append(offers[same])
            numbers.append(self._numbers[at[same]])
            at = self._next[at]


def _hash(offers: Int64s) -> NDArray[np.uint32]:
    """Return 32 bits of each offer, well spread also where offers are consecutive numbers."""
    mixed = offers.view(np.uint64) * _SPREAD
    halves: NDArray[np.uint32] = mixed.view(np.uint32)
    return halves[_HIGH::2]


def _hash_one(offer: int) -> int:
    """Return what `_hash` says of one offer, without numpy."""
    return offer * int(_SPREAD) % (1 << 64) >> 32
