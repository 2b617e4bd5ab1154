"""Find the leaf of the trie that was matched least recently."""

from __future__ import annotations

import heapq
from array import array

from kvmarket.registry.trie.node import Node

_NUMBERS = 32  # bits of a node's number in an entry
_NUMBER = (1 << _NUMBERS) - 1
_NEVER = (1 << 63) - 1


class ColdLeaves:
    """A heap of (stamp, node number) over all leaves, corrected only when `coldest` is called.

    The stamp of an entry is never greater than that of the leaf's last block: a match raises the leaf's stamp without
    touching the heap, and so does trimming (blocks nearer to the root are never older). So one entry is enough for a
    node number, until a leaf with a smaller stamp gets that number. Entries of nodes that are gone or are no longer
    leaves are dropped when they reach the top. `nodes` is the trie's own list. 44 bytes a leaf; no call visits all.
    """

    __slots__ = ("_heap", "_nodes", "_stamps")

    def __init__(self, nodes: list[Node | None]) -> None:
        self._nodes = nodes
        self._heap: list[int] = []  # stamp << _NUMBERS | number
        self._stamps = array("q")  # by number: the stamp of the valid entry

    def push(self, node: Node) -> None:
        """Note that a node is, or may have become, a leaf. Cost: O(log nodes)."""
        number = node.number
        if node.children is not None or number <= 0:
            return
        while len(self._stamps) <= number:
            self._stamps.append(_NEVER)
        stamp = _stamp(node)
        if stamp < self._stamps[number]:
            self._stamps[number] = stamp
            heapq.heappush(self._heap, stamp << _NUMBERS | number)

    def coldest(self) -> Node:
        """Return the leaf whose last block was matched least recently; there must be a leaf.

        Cost: O(log nodes) for each stale entry on the way.
        """
        heap = self._heap
        while True:
            stamp, number = heap[0] >> _NUMBERS, heap[0] & _NUMBER
            node = self._nodes[number]
            if stamp != self._stamps[number]:  # an older entry of this number is or was the valid one
                heapq.heappop(heap)
            elif node is None or node.children is not None:
                self._stamps[number] = _NEVER
                heapq.heappop(heap)
            elif _stamp(node) == stamp:
                return node
            else:
                self._stamps[number] = _stamp(node)
                heapq.heapreplace(heap, _stamp(node) << _NUMBERS | number)

    def numbers(self) -> dict[int, int]:
        """Return the stamp noted for each node number. Cost: O(entries); for checks only."""
        entries = {(entry & _NUMBER, entry >> _NUMBERS) for entry in self._heap}
        return {number: stamp for number, stamp in enumerate(self._stamps) if (number, stamp) in entries}


def _stamp(leaf: Node) -> int:
    assert leaf.stamps is not None
    return int(leaf.stamps[-1])
