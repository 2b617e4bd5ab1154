"""The nodes of the trie and the operations that change its shape: add, lengthen, split, join, remove, evict."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from kvmarket.registry.trie.eviction import ColdLeaves
from kvmarket.registry.trie.node import NONE, Node
from kvmarket.registry.trie.offer_index import OfferIndex
from kvmarket.registry.trie.tokens import Int64s
from kvmarket.support.flags import total

Place: TypeAlias = tuple[Node, int]  # a node, and one of its blocks


class Tree:
    """The nodes below a root, each under the bytes of its first block, and the index and counts that belong to them.

    All tenants share one tree: the key of a node below the root begins with its tenant. So a tenant costs only the
    memory of its blocks.

    width     bytes of a block's tokens
    nodes     by number; None where a number is free; the root at 0
    index     from an offer to the number of the node that holds it
    cold      the leaves by age; None if the trie never evicts
    clock     stamp of the latest call; PrefixTrie counts it up
    stored    number of blocks, holes included
    held      number of blocks with an offer
    pairs     number of offers, over all blocks

    An offer is on at most one block. A node has at most `node_blocks` blocks, a leaf ends in a block with an offer, and
    an only child is one that did not fit into its parent. After `grow` and `split` the caller must call `join`.
    """

    def __init__(self, width: int, node_blocks: int, *, evicts: bool) -> None:
        self.width = width
        self.node_blocks = node_blocks
        self.root = Node(None, b"", b"", b"", np.empty((1, 0), np.int64), None)
        self.root.number, self.root.children = 0, {}
        self.nodes: list[Node | None] = [self.root]
        self.index = OfferIndex()
        self.cold = ColdLeaves(self.nodes) if evicts else None
        self.clock = 0
        self.stored = self.held = self.pairs = 0
        self._free: list[int] = []

    def let_go(self) -> None:
        """Free the memory of all nodes at once. They refer to each other, so else only Python's collector would.

        The tree must not be used any more. Cost: 0.2 us a node.
        """
        for node in self.nodes:
            if node is not None:
                node.parent = node.children = None
        self.nodes.clear()

    def offer(self, node: Node, start: int, offers: Int64s) -> None:
        """Put one offer on each block of a node from `start` on. As `Node.add`."""
        if not offers.size:
            return
        holes = node.holes
        fresh, grown = node.add(start, offers)
        self.held += holes - node.holes
        self.pairs += grown
        self._note(fresh, node)

    def find(self, offer: int) -> Place | None:
        """The place of `offer`: its node and the index of its block; None if no node has it.

        Cost: a few us, and O(offers of the node).
        """
        node = self.nodes[self.index.node(offer)]
        if node is None or not node.size:
            return None
        if offer in node.offers[:, -1].tolist():  # the usual case: a conversation continues
            return node, node.size - 1
        places = np.flatnonzero((node.offers == offer).any(axis=0))
        return (node, int(places[0])) if places.size else None

    def touch(self, node: Node | None) -> None:
        """Stamp a node and all above it with the clock. Cost: O(blocks), by memset."""
        while node is not None:
            if node.stamps is not None:
                node.stamps[:] = self.clock
            node = node.parent

    def grow(self, node: Node, data: bytes, row: Int64s, tenant: bytes = b"") -> None:
        """Add all blocks of `data` below a node that has no child with the first one; below the root for `tenant`."""
        for at in range(0, row.size, self.node_blocks):
            part = row[at : at + self.node_blocks]
            start, end = at * self.width, (at + part.size) * self.width
            head, tail = data[start : start + self.width], data[start + self.width : end]
            stamps = None if self.cold is None else np.full(part.size, self.clock, np.int64)
            key = tenant + head if tenant and not at else head
            child = Node(node, key, head, tail, part[np.newaxis].copy(), stamps)
            node.hang(key, child)
            self._enter(child)
            self.stored += child.size
            self.held += child.size - child.holes
            self.pairs += child.size - child.holes
            self._note(part[part >= 0] if child.holes else part, child)
            node = child
        if self.cold is not None:
            self.cold.push(node)

    def fan(self, node: Node, heads: list[bytes], offers: Int64s) -> None:
        """Add several sibling blocks below a node, each with its offer. The node must not have them as children.

        Cost: 4 us each.
        """
        numbers = np.empty(len(heads), np.int32)
        columns = offers.reshape(-1, 1, 1)
        for at, head in enumerate(heads):
            stamps = None if self.cold is None else np.full(1, self.clock, np.int64)
            child = Node(node, head, head, b"", columns[at].copy(), stamps, full=True)
            node.hang(head, child)
            self._enter(child)
            numbers[at] = child.number
            if self.cold is not None:
                self.cold.push(child)
        self.stored += len(heads)
        self.held += len(heads)
        self.pairs += len(heads)
        self.index.add(offers, numbers)

    def lengthen(self, node: Node, data: bytes, row: Int64s) -> bool:
        """Append all blocks of `data` to a leaf. False, and nothing done, if it is no leaf or has no room for them."""
        if node.children is not None or node.number <= 0 or node.size + row.size > self.node_blocks:
            return False
        holes = node.holes
        stamps = None if self.cold is None else np.full(row.size, self.clock, np.int64)
        node.append(data, row[np.newaxis], stamps)
        fresh = row.size - (node.holes - holes)
        self.stored += row.size
        self.held += fresh
        self.pairs += fresh
        self._note(row if fresh == row.size else row[row >= 0], node)
        return True

    def split(self, node: Node, blocks: int) -> Node:
        """Cut a node in two; return the upper one, which has `blocks` blocks.

        The shorter half gets a new number, so that fewer offers must be indexed again.
        """
        above = node.cut(blocks)
        shorter = above if blocks <= node.size else node
        if shorter is node:
            above.number = node.number
            self.nodes[above.number] = above
        self._enter(shorter)
        self._note(shorter.offers[shorter.offers >= 0], shorter)
        if self.cold is not None:
            self.cold.push(node)
        return above

    def join(self, node: Node) -> Node:
        """Join a node and its child, if it has only one and both fit in one node. Return the node that now has them."""
        if node.number <= 0 or node.children is None or len(node.children) != 1:
            return node
        (child,) = node.children.values()
        if node.size + child.size > self.node_blocks:
            return node
        smaller = child if child.size <= node.size else node
        moved = smaller.offers[smaller.offers >= 0]
        child.absorb(node)
        self._leave(smaller.number)
        if smaller is child:
            child.number = node.number
            self.nodes[child.number] = child
        node.number = NONE
        self._note(moved, child)
        if self.cold is not None:
            self.cold.push(child)
        return child

    def remove(self, offers: Int64s) -> int:
        """Remove offers; return how many were found. As PrefixTrie.remove."""
        if not offers.size:
            return 0
        node, removed = self._withdraw(self.index.node(int(offers[0])), offers)  # mostly one node has all of them
        touched = [] if node is None else [node]
        if removed < offers.size:
            numbers = self.index.find(offers)
            order = np.argsort(numbers, kind="stable")  # ten times as fast on numbers that come in runs
            offers, numbers = offers[order], numbers[order]
            edges = np.flatnonzero(np.diff(numbers, prepend=NONE)).tolist()
            for start, end in zip(edges, [*edges[1:], numbers.size], strict=False):
                node, count = self._withdraw(int(numbers[start]), offers[start:end])
                if node is not None:
                    removed += count
                    touched.append(node)
        for node in touched:
            self._tidy(node)
        return removed

    def _withdraw(self, number: int, offers: Int64s) -> tuple[Node | None, int]:
        """Remove offers from node `number`; return the node and their count. (None, 0) if it had none of them.

        The caller must call `_tidy` for the node. Cost: O(offers of the node).
        """
        node = self.nodes[number]
        if node is None or not node.size:
            return None, 0
        holes, count = node.holes, node.withdraw(offers)
        self.held -= node.holes - holes
        self.pairs -= count
        return (node, count) if count else (None, 0)

    def evict(self, most: int) -> None:
        """Drop leaf blocks, the least recently matched first, until no more than `most` blocks are stored.

        Cost: O(tokens) of each leaf that loses blocks, and O(log nodes) for each leaf matched meanwhile.
        """
        while self.cold is not None and self.stored > most:
            leaf = self.cold.coldest()
            stamps, holes = leaf.stamps, leaf.holes
            assert stamps is not None
            keep = max(leaf.size - (self.stored - most), int((stamps == stamps[-1]).argmax()))
            gone = leaf.offers[:, keep:]
            self.pairs -= total(gone >= 0)
            gone[:] = NONE
            leaf.holes = total(leaf.offers[0] < 0)
            self.held -= leaf.holes - holes
            self._tidy(leaf)

    def _tidy(self, node: Node) -> None:
        """After blocks of a node lost offers: cut holes off the end of a leaf, drop empty nodes, join only children."""
        while node.number < 0 and node.parent is not None:
            node = node.parent
        while node.number > 0 and node.children is None and node.offers[0, -1] < 0 and node.parent is not None:
            last = int(np.flatnonzero(node.offers[0] >= 0)[-1]) + 1 if node.holes < node.size else 0
            self.stored -= node.size - last
            if last:
                node.keep(last)
                break
            above = node.parent
            assert above.children is not None
            del above.children[node.key]
            if not above.children and above.number > 0:
                above.children = None
            self._leave(node.number)
            node.number = NONE
            node = above
        if self.cold is not None:
            self.cold.push(node)
        node = self.join(node)
        if node.parent is not None:
            self.join(node.parent)

    def _note(self, offers: Int64s, node: Node) -> None:
        """Put offers that a node holds into the index."""
        if offers.size:
            self.index.add(offers, node.number)

    def _enter(self, node: Node) -> None:
        """Give a node a number."""
        if self._free:
            node.number = self._free.pop()
            self.nodes[node.number] = node
        else:
            node.number = len(self.nodes)
            self.nodes.append(node)

    def _leave(self, number: int) -> None:
        """Free a node's number."""
        self.nodes[number] = None
        self._free.append(number)
