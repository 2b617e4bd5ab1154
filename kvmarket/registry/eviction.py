"""Which leaf of the trie was matched longest ago."""

from __future__ import annotations

import heapq

from kvmarket.registry.node import Node


class ColdLeaves:
    """A heap of (stamp, node number) over all leaves, put right only when it is asked.

    The stamp of an entry is at most that of the leaf's last block: matches make leaves younger without touching the
    heap, and so does trimming (nearer the root is never older). `nodes` is the trie's own list; entries of nodes that
    are gone or no longer leaves are dropped when met.
    """

    __slots__ = ("_heap", "_nodes")

    def __init__(self, nodes: list[Node | None]) -> None:
        self._nodes = nodes
        self._heap: list[tuple[int, int]] = []

    def push(self, node: Node) -> None:
        """Note that a node is, or may have become, a leaf. Cost: O(log nodes), amortized."""
        if len(self._heap) > 2 * len(self._nodes) + 64:
            leaves = [leaf for leaf in self._nodes[1:] if leaf is not None and leaf.children is None]
            self._heap = [_entry(leaf) for leaf in leaves]
            heapq.heapify(self._heap)
        if node.children is None and node.number > 0:
            heapq.heappush(self._heap, _entry(node))

    def coldest(self) -> Node:
        """Return the leaf whose last block was matched longest ago; there must be one.

        Cost: O(log nodes) for each stale entry on the way.
        """
        heap = self._heap
        while True:
            stamp, number = heap[0]
            node = self._nodes[number]
            if node is None or number == 0 or node.children is not None:
                heapq.heappop(heap)
                continue
            entry = _entry(node)
            if entry[0] == stamp:
                return node
            heapq.heapreplace(heap, entry)

    def numbers(self) -> dict[int, int]:
        """Return the oldest stamp noted for each node number. Cost: O(entries); for checks only."""
        oldest: dict[int, int] = {}
        for stamp, number in self._heap:
            oldest[number] = min(stamp, oldest.get(number, stamp))
        return oldest


def _entry(leaf: Node) -> tuple[int, int]:
    assert leaf.stamps is not None
    return int(leaf.stamps[-1]), leaf.number
