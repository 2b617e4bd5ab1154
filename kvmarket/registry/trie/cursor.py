"""A cursor that walks through the trie in small steps; the trie may change between two steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kvmarket.registry.trie.children import Children
from kvmarket.registry.trie.node import Node
from kvmarket.registry.trie.tokens import Int64s

if TYPE_CHECKING:
    from kvmarket.registry.trie.tree import Tree


class Visit(NamedTuple):
    """Consecutive blocks that a cursor visits.

    tenant   the tenant of the prefix
    depth    number of blocks of the prefix before these; the cursor has visited them
    above    the node that holds the last of the blocks before
    node     the node that holds these blocks, at its end
    tokens   tokens of these blocks, as bytes
    offers   int64 (rows, blocks), as in a node: a view

    Valid until the trie changes.
    """

    tenant: bytes
    depth: int
    above: Node
    node: Node
    tokens: bytes
    offers: Int64s

    def path(self) -> bytes:
        """The tokens of the prefix before these blocks. Cost: O(tokens)."""
        return self.above.path(self.depth - self.above.start()) if self.depth else b""


class Leaves(NamedTuple):
    """Sibling blocks without children, each a node of its own with one offer. Stands for a visit of each.

    They continue the last block of `above` at `depth`. `tokens` and `offers` (int64) have one element a block. Valid
    until the trie changes.
    """

    tenant: bytes
    depth: int
    above: Node
    tokens: list[bytes]
    offers: Int64s


class _Level:
    """One level of the walk: keys of the children of a visited place, and how many of them the cursor has visited."""

    __slots__ = ("_many", "_shard", "depth", "keys", "node", "seen", "tenant")

    def __init__(self, node: Node, depth: int, tenant: bytes) -> None:
        self.node, self.depth, self.tenant = node, depth, tenant
        self._many = node.children if isinstance(node.children, Children) else None
        self._shard = self.seen = 0
        self.keys = list(node.children) if isinstance(node.children, dict) else []

    def over(self) -> bool:
        """Whether the cursor has visited all children of this level. Else loads the next keys if needed."""
        while self.seen == len(self.keys):
            if self._many is None or self._shard == len(self._many.shards):
                return True
            self.keys, self.seen = list(self._many.shards[self._shard]), 0
            self._shard += 1
        return False


class Cursor:
    """Visits every block of a trie, each after the blocks before it. Its memory is O(`children.WIDE`) a level.

    Blocks that are in the trie from the first step to the last are visited. Blocks that are added meanwhile are visited
    unless the block before them has been visited already. So a receiver that gets each visit, and each change after the
    first visit, gets everything, and no block before the one that it continues. Blocks that are removed meanwhile may
    be visited or not. A block may be visited twice if it is removed and added again.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._levels = [_Level(tree.root, 0, b"")]

    def next(self) -> Visit | None:
        """The next blocks, of one node; None at the end. Cost: O(blocks), and a few us."""
        while self._levels:
            level = self._levels[-1]
            if level.over():
                self._levels.pop()
                continue
            key = level.keys[level.seen]
            level.seen += 1
            found = self._find(level, key)
            if found is None:  # it was removed
                continue
            above, node, at = found
            tenant = level.tenant if level.depth else key[: -self._tree.width]
            if node.children:
                self._levels.append(_Level(node, level.depth + node.size - at, tenant))
            data = node.head + node.tail
            tokens = data[at * self._tree.width :] if at else data
            return Visit(tenant, level.depth, above, node, tokens, node.offers[:, at:])
        return None

    def leaves(self, most: int, wanted: Callable[[int, Node], bool]) -> Leaves | None:
        """The next blocks, at most `most`, if they are sibling leaves; else None.

        `wanted(depth, above)` says whether leaves that continue node `above` at `depth` are wanted. Cost: 1 us each, a
        fifth of the cost of a visit.
        """
        level = self._levels[-1] if self._levels else None
        covering = self._covering(level.node, level.depth) if level is not None and level.depth else None
        if level is None or covering is None or covering[1] < covering[0].size or most < 1:
            return None
        if not wanted(level.depth, covering[0]):
            return None
        children = {} if covering[0].children is None else covering[0].children
        found: list[Node] = []
        while len(found) < most and not level.over():
            child = children.get(level.keys[level.seen])
            if child is not None:
                if child.children is not None or child.offers.shape != (1, 1):
                    break
                found.append(child)
            level.seen += 1
        if not found:
            return None
        offers = np.concatenate([child.offers for child in found], axis=1)[0]
        return Leaves(level.tenant, level.depth, covering[0], [child.head for child in found], offers)

    def _find(self, level: _Level, key: bytes) -> tuple[Node, Node, int] | None:
        """Find the block `key` of a level: the node before it, its node, and its index there; None if removed."""
        covering = self._covering(level.node, level.depth)
        if covering is None:
            return None
        node, blocks = covering
        if blocks == node.size:
            child = None if node.children is None else node.children.get(key)
            return None if child is None else (node, child, 0)
        width = self._tree.width
        data = node.tail[(blocks - 1) * width : blocks * width]  # its only child was joined to it meanwhile
        return (node, node, blocks) if data == key else None

    def _covering(self, node: Node, depth: int) -> tuple[Node, int] | None:
        """The node that now holds the last block of a prefix of `depth` blocks, and how many of its blocks are in it.

        `node` held that block before. The `parent` of a joined node is the node that replaced it, and the `parent` of a
        split node is its upper half. So the block is in `node` or above it.
        """
        if not depth:
            return self._tree.root, 0
        while node.number < 0 and node.parent is not None:
            node = node.parent
        start = node.start()
        while start >= depth and node.parent is not None:
            node = node.parent
            start -= node.size
        return (node, depth - start) if 0 < depth - start <= node.size else None
