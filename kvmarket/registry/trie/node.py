"""A node of the trie: consecutive blocks without a branch between them, with the offers of each block."""

from __future__ import annotations

import numpy as np

from kvmarket.registry.trie.children import WIDE, Children
from kvmarket.registry.trie.tokens import Int32s, Int64s
from kvmarket.support.flags import leading, total

OFFERS_PER_BLOCK = 64  # several pools of each of a node's engines may offer one system prompt
NONE = -1

_NOTHING = np.empty(0, np.int64)


class Node:
    """One or more consecutive blocks below a parent.

    head      tokens of the first block, as bytes
    key       its key in the parent: `head`, or for a node below the root its tenant and `head`
    tail      tokens of the other blocks, as bytes
    offers    int64 (rows, blocks): row 0 the newest offer of each block, older ones below, NONE for no offer; only
              row 0 may be empty
    holes     number of blocks without an offer
    children  by their keys; None if there is none (the root's is never None); a `Children` if they are many
    number    index in the trie's list of nodes; NONE once the node is gone; `parent` is then the node that replaced it
    stamps    int64 (blocks,): clock of the last match of each block; None if the trie never evicts
    """

    __slots__ = ("children", "head", "holes", "key", "number", "offers", "parent", "stamps", "tail")

    def __init__(
        self,
        parent: Node | None,
        key: bytes,
        head: bytes,
        tail: bytes,
        offers: Int64s,
        stamps: Int64s | None,
        *,
        full: bool = False,
    ) -> None:
        self.parent = parent
        self.key = key
        self.head = head
        self.tail = tail
        self.offers = offers
        self.holes = 0 if full else total(offers[0] < 0)
        self.children: dict[bytes, Node] | Children[Node] | None = None
        self.number = NONE
        self.stamps = stamps

    @property
    def size(self) -> int:
        """Blocks of this node, holes included. Cost: O(1)."""
        return int(self.offers.shape[1])

    def pairs(self) -> int:
        """Return the number of offers, over all blocks. Cost: O(offers)."""
        return total(self.offers >= 0)

    def reach(self, tokens: Int32s, at: int) -> int:
        """Return how many leading blocks equal those of `tokens` from index `at` on. The first one must be equal.

        Cost: O(tokens of the node), by memcpy and memcmp.
        """
        tail, width = self.tail, len(self.head)
        after = tokens[at + width // 4 : at + (width + len(tail)) // 4]
        if after.tobytes() == tail:
            return self.size
        return 1 + leading(np.frombuffer(tail, np.int32, after.size) == after) * 4 // width

    def path(self, blocks: int) -> bytes:
        """Return the tokens of the whole prefix that ends with the first `blocks` blocks. Cost: O(tokens)."""
        parts = [(self.head + self.tail)[: blocks * len(self.head)]]
        node = self.parent
        while node is not None:
            parts.append(node.head + node.tail)
            node = node.parent
        return b"".join(reversed(parts))

    def top(self) -> Node:
        """Return the ancestor of this node right below the root, or itself. Cost: O(nodes above)."""
        node = self
        while node.parent is not None and node.parent.parent is not None:
            node = node.parent
        return node

    def start(self) -> int:
        """Return the number of blocks in the prefix before this node. Cost: O(nodes above)."""
        blocks, node = 0, self.parent
        while node is not None:
            blocks += node.size
            node = node.parent
        return blocks

    def leading(self, blocks: int) -> int:
        """Return how many of the first `blocks` blocks come before the first hole. Cost: O(1) without holes."""
        if not self.holes:
            return blocks
        return leading(self.offers[0, :blocks] >= 0)

    def add(self, start: int, new: Int64s) -> tuple[Int64s, int]:
        """Put one offer on each block from `start` on, as the newest; drop the oldest beyond OFFERS_PER_BLOCK.

        Returns the offers that are new on their block, and the growth of the number of offers of this node. Cost:
        O(offers of these blocks), and O(offers of the node) when a row is added.
        """
        end = start + new.size
        part = self.offers[:, start:end]
        known = part == new
        if leading(known[0]) == new.size:
            return _NOTHING, 0
        before = total(part >= 0)
        fresh = new[~known.any(axis=0)]
        part = _lean(_sink(np.vstack((new, np.where(known, NONE, part))))[:OFFERS_PER_BLOCK])
        if len(part) > len(self.offers):
            self.offers = _tall(self.offers, len(part))
        self.offers[: len(part), start:end] = part
        self.holes = total(self.offers[0] < 0)
        return fresh, total(part >= 0) - before

    def withdraw(self, gone: Int64s) -> int:
        """Remove these offers from all blocks; return how many were found. Cost: O(offers of the node)."""
        if gone.size == 1:
            found = self.offers == gone[0]
        else:
            if self._are_all(gone):  # the usual case
                self.offers[:] = NONE
                self.holes = gone.size
                return self.holes
            gone = np.sort(gone)
            found = gone.take(gone.searchsorted(self.offers), mode="clip") == self.offers
        count = total(found)
        if count:
            self.offers[found] = NONE
            self.offers = _lean(_sink(self.offers))
            self.holes = total(self.offers[0] < 0)
        return count

    def _are_all(self, offers: Int64s) -> bool:
        """Whether these are the offers of this node, one a block, in any order."""
        if self.offers.shape != (1, offers.size):
            return False
        mine = self.offers[0]
        return mine.tobytes() == offers.tobytes() or np.sort(mine).tobytes() == np.sort(offers).tobytes()

    def keep(self, blocks: int) -> None:
        """Keep only the first `blocks` blocks (at least one). Cost: O(tokens kept)."""
        self.tail = self.tail[: (blocks - 1) * len(self.head)]
        self._set(self.offers[:, :blocks], None if self.stamps is None else self.stamps[:blocks])

    def cut(self, blocks: int) -> Node:
        """Split off the first `blocks` blocks as a new node above this one; returns it, without a number.

        Cost: O(tokens of the node).
        """
        width, at = len(self.head), (blocks - 1) * len(self.head)
        stamps = self.stamps
        upper = None if stamps is None else stamps[:blocks].copy()
        above = Node(self.parent, self.key, self.head, self.tail[:at], _lean(self.offers[:, :blocks]).copy(), upper)
        self.parent = above
        self.head, self.tail = self.tail[at : at + width], self.tail[at + width :]
        self.key = self.head
        self._set(self.offers[:, blocks:], None if stamps is None else stamps[blocks:])
        above.children = {self.head: self}
        assert above.parent is not None and above.parent.children is not None
        above.parent.children[above.key] = above
        return above

    def append(self, data: bytes, offers: Int64s, stamps: Int64s | None) -> None:
        """Append blocks with these tokens (bytes), offers and stamps. Cost: O(tokens of the node)."""
        self.tail += data
        rows = max(len(self.offers), len(offers))
        self.offers = np.concatenate((_tall(self.offers, rows), _tall(offers, rows)), axis=1)
        if self.stamps is not None and stamps is not None:
            self.stamps = np.concatenate((self.stamps, stamps))
        self.holes = total(self.offers[0] < 0)

    def hang(self, key: bytes, child: Node) -> None:
        """Add `child`, whose `parent` is this node already, under `key`. Many children are moved to a `Children`."""
        if self.children is None:
            self.children = {}
        elif len(self.children) >= WIDE and isinstance(self.children, dict):
            self.children = Children(self.children)
        self.children[key] = child

    def absorb(self, above: Node) -> None:
        """Take the blocks of the parent `above` before ours, and its place. This node must be its only child.

        The parent does not absorb its child, because all children of the child would need a new parent. Cost: O(tokens
        of both).
        """
        self.head, self.tail = above.head, above.tail + self.head + self.tail
        self.key, self.parent = above.key, above.parent
        rows = max(len(self.offers), len(above.offers))
        self.offers = np.concatenate((_tall(above.offers, rows), _tall(self.offers, rows)), axis=1)
        self.holes += above.holes
        if self.stamps is not None and above.stamps is not None:
            self.stamps = np.concatenate((above.stamps, self.stamps))
        assert self.parent is not None and self.parent.children is not None
        self.parent.children[self.key] = self
        above.parent, above.children = self, None

    def _set(self, offers: Int64s, stamps: Int64s | None) -> None:
        """Set offers and stamps to copies of these."""
        self.offers = _lean(offers).copy()
        self.stamps = None if stamps is None else stamps.copy()
        self.holes = total(self.offers[0] < 0)


def _sink(offers: Int64s) -> Int64s:
    """Return the columns with every NONE moved below the offers; the order of the offers stays."""
    if len(offers) == 1 or not ((offers[:-1] < 0) & (offers[1:] >= 0)).any():
        return offers
    return np.take_along_axis(offers, np.argsort(offers < 0, axis=0, kind="stable"), axis=0)


def _lean(offers: Int64s) -> Int64s:
    """Return the offers without empty rows at the bottom; one row at least."""
    rows = len(offers)
    while rows > 1 and (offers[rows - 1] < 0).all():
        rows -= 1
    return offers[:rows].copy() if rows < len(offers) else offers


def _tall(offers: Int64s, rows: int) -> Int64s:
    """Return the offers with empty rows added at the bottom."""
    if len(offers) == rows:
        return offers
    taller = np.full((rows, offers.shape[1]), NONE, np.int64)
    taller[: len(offers)] = offers
    return taller
