"""A dict for the children of a node that has very many: no single operation takes long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Child = TypeVar("Child")
WIDE = 1024  # children from which a node has a `Children`, and not a plain dict
SHARD = 512  # keys of a shard, on average and at most


class Children(Generic[Child]):
    """Nodes by their keys, in shards: plain dicts of about `SHARD` keys.

    A plain dict of 200,000 keys takes 4 ms to list, and 2 ms whenever it grows its table. Here one shard is cut in two,
    which takes about 0.1 ms, for every `SHARD` new keys (linear hashing; Litwin, 1980). Keys move only to the last
    shard. So a loop over the shards in order, new ones included, meets every key that stays in the dict.
    """

    __slots__ = ("_bits", "_size", "shards")

    def __init__(self, few: dict[bytes, Child]) -> None:
        """Take ownership of a plain dict, which becomes the first shard."""
        self.shards = [few]
        self._bits = 0  # mask of the bits of a key's hash that select its shard
        self._size = len(few)
        while self._size > SHARD * len(self.shards):
            self._cut()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: bytes) -> bool:
        return key in self._shard(key)

    def get(self, key: bytes) -> Child | None:
        """The node of `key`, or None."""
        return self._shard(key).get(key)

    def __setitem__(self, key: bytes, node: Child) -> None:
        shard = self._shard(key)
        before = len(shard)
        shard[key] = node
        self._size += len(shard) - before
        if self._size > SHARD * len(self.shards):
            self._cut()

    def __delitem__(self, key: bytes) -> None:
        del self._shard(key)[key]
        self._size -= 1

    def values(self) -> Iterator[Child]:
        """Iterate over all nodes. The dict must not change meanwhile."""
        for shard in self.shards:
            yield from shard.values()

    def _shard(self, key: bytes) -> dict[bytes, Child]:
        number, shards = hash(key) & self._bits, self.shards
        return shards[number] if number < len(shards) else shards[number & self._bits >> 1]

    def _cut(self) -> None:
        """Cut the next shard, in the order of linear hashing, in two."""
        number = len(self.shards)
        if number > self._bits:
            self._bits = 2 * self._bits + 1
        halves: tuple[dict[bytes, Child], dict[bytes, Child]] = {}, {}
        for key, node in self.shards[number & self._bits >> 1].items():
            halves[hash(key) & self._bits == number][key] = node
        self.shards[number & self._bits >> 1] = halves[0]
        self.shards.append(halves[1])
