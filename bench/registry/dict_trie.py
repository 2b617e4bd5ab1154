"""The simplest trie, with a dict for each token: the reference of the tests and the baseline of the benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvmarket.registry.trie.node import OFFERS_PER_BLOCK


class Entry:
    """The node of a token: children; if a block ends here, its offers, newest first, and its last use as `stamp`."""

    __slots__ = ("children", "offers", "stamp")

    def __init__(self) -> None:
        self.children: dict[int, Entry] = {}
        self.offers: list[int] = []
        self.stamp = 0


class DictTrie:
    """The contract of PrefixTrie in simple code. `remove` and eviction walk over the whole trie."""

    def __init__(self, block_size: int, max_blocks: int | None = None) -> None:
        self.block_size = block_size
        self.max_blocks = max_blocks
        self.root = Entry()
        self.clock = 0

    def insert(self, tokens: Sequence[int], offers: Sequence[int], first: int = 0) -> None:
        """Add one offer to each whole block from block `first` on."""
        if not len(offers):
            return
        self.clock += 1
        entry = self.root
        for index in range(len(tokens) // self.block_size * self.block_size):
            below = entry.children.get(tokens[index])
            if below is None:
                below = entry.children[tokens[index]] = Entry()
            entry = below
            block, last = divmod(index + 1, self.block_size)
            if last == 0:
                entry.stamp = self.clock
                if block > first:
                    offer = offers[block - 1 - first]
                    if entry.offers:
                        entry.offers = [offer, *(old for old in entry.offers if old != offer)][:OFFERS_PER_BLOCK]
                    else:
                        entry.offers = [offer]
        if self.max_blocks is not None:
            self._evict(self.max_blocks)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Return the newest offer of each leading block."""
        found, entry, left = [], self.root, self.block_size
        self.clock += 1
        for token in tokens:
            below = entry.children.get(token)
            if below is None:
                break
            entry = below
            left -= 1
            if left == 0:
                if not entry.offers:
                    break
                left = self.block_size
                entry.stamp = self.clock
                found.append(entry.offers[0])
        return found

    def match_all(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Return all offers of each leading block, newest first."""
        blocks, held = len(self.match(tokens)), self.blocks()
        size = self.block_size
        return [tuple(held[tuple(tokens[: (block + 1) * size])].offers) for block in range(blocks)]

    def remove(self, offers: Iterable[int]) -> int:
        """Remove these offers from all blocks; returns how many were removed."""
        gone, removed = set(offers), 0
        for entry in self.blocks().values():
            kept = [offer for offer in entry.offers if offer not in gone]
            removed += len(entry.offers) - len(kept)
            entry.offers = kept
        self._prune(self.root, 0)
        return removed

    def blocks(self) -> dict[tuple[int, ...], Entry]:
        """Return every block by its prefix, blocks without offers included."""
        size = self.block_size
        return {prefix: entry for prefix, entry in self._walk((), self.root) if prefix and len(prefix) % size == 0}

    def __len__(self) -> int:
        return sum(bool(entry.offers) for entry in self.blocks().values())

    def _walk(self, prefix: tuple[int, ...], entry: Entry) -> Iterator[tuple[tuple[int, ...], Entry]]:
        yield prefix, entry
        for token, below in entry.children.items():
            yield from self._walk((*prefix, token), below)

    def _prune(self, entry: Entry, depth: int) -> bool:
        """Remove all nodes without an offer in or below them; True if `entry` itself is such a node."""
        entry.children = {token: below for token, below in entry.children.items() if not self._prune(below, depth + 1)}
        return not entry.children and not entry.offers

    def _evict(self, most: int) -> None:
        blocks = self.blocks()
        while len(blocks) > most:
            leaf = min((entry for entry in blocks.values() if not entry.children), key=lambda entry: entry.stamp)
            leaf.offers = []
            self._prune(self.root, 0)
            blocks = self.blocks()
