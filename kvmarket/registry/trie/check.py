"""Assert the invariants of the trie, one by one. For tests."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from kvmarket.registry.trie.node import NONE, OFFERS_PER_BLOCK, Node

if TYPE_CHECKING:
    from kvmarket.registry.trie.tree import Tree


def check(tree: Tree) -> None:
    """Assert that every invariant holds; writes the trie to stderr when one is broken. Cost: O(everything)."""
    try:
        _check_tree(tree)
        _check_index(tree)
        _check_cold(tree)
    except AssertionError:
        sys.stderr.write(dump(tree) + "\n")
        raise


def dump(tree: Tree) -> str:
    """Return the whole trie as text, one node a line."""
    lines = [
        f"trie: {tree.held} held, {tree.stored} stored, {tree.pairs} pairs, clock {tree.clock}",
    ]
    waiting = [(tree.root, 0)]
    while waiting:
        node, depth = waiting.pop()
        tokens = np.frombuffer(node.head + node.tail, np.int32).tolist()
        stamps = None if node.stamps is None else node.stamps.tolist()
        facts = f"tokens {tokens} offers {node.offers.tolist()} holes {node.holes} stamps {stamps}"
        lines.append(f"{'  ' * depth}#{node.number} {facts}")
        waiting += [(child, depth + 1) for child in (node.children or {}).values()]
    return "\n".join(lines)


def _nodes(tree: Tree) -> list[Node]:
    """Return every node below the root, by walking down."""
    found: list[Node] = []
    waiting = [tree.root]
    while waiting:
        children = list((waiting.pop().children or {}).values())
        found += children
        waiting += children
    return found


def _check_tree(tree: Tree) -> None:
    nodes = _nodes(tree)
    for node in nodes:
        offers = node.offers
        assert node.parent is not None and node.parent.children is not None, "a node has a parent"
        assert node.parent.children.get(node.key) is node, "a node is its parent's child, under its key"
        below_root = node.parent is tree.root
        assert node.key.endswith(node.head) if below_root else node.key == node.head, "a key ends in the first block"
        assert (len(node.head), len(node.tail)) == (tree.width, (node.size - 1) * tree.width), "tokens fit the blocks"
        assert 1 <= node.size <= tree.node_blocks and 1 <= len(offers) <= OFFERS_PER_BLOCK, "a node keeps its bounds"
        assert offers.dtype == np.int64 and offers.base is None, "offers are memory of the node's own"
        assert not ((offers[:-1] < 0) & (offers[1:] >= 0)).any(), "no gap above an offer"
        assert len(offers) == 1 or (offers[-1] >= 0).any(), "no empty row"
        assert node.holes == int((offers[0] < 0).sum()), "holes are counted"
        sizes = (offers >= 0).sum(axis=0).tolist()
        assert [len({*column} - {NONE}) for column in offers.T.tolist()] == sizes, "an offer is once in a block"
        if node.children is None:
            assert offers[0, -1] >= 0, "a leaf ends in an offered block"
        else:
            assert len(node.children), "no empty dict of children"
            assert all(node.children.get(child.key) is child for child in node.children.values()), "children by key"
            if len(node.children) == 1:
                (child,) = node.children.values()
                assert node.size + child.size > tree.node_blocks, "an only child is joined where it fits"
    assert tree.stored == sum(node.size for node in nodes), "stored blocks are counted"
    assert tree.held == sum(node.size - node.holes for node in nodes), "held blocks are counted"
    assert tree.pairs == sum(node.pairs() for node in nodes), "offers are counted"
    listed = {number: node for number, node in enumerate(tree.nodes) if node is not None}
    assert listed.keys() == {0} | {node.number for node in nodes}, "the list names the nodes of the tree, no others"
    assert all(node.number == number for number, node in listed.items()), "numbers are places in the list"
    free = [number for number, node in enumerate(tree.nodes) if node is None]
    assert sorted(tree._free) == free, "free numbers are listed once"


def _check_index(tree: Tree) -> None:
    pairs = [(offer, node.number) for node in _nodes(tree) for offer in node.offers.ravel().tolist() if offer >= 0]
    offers = np.array([offer for offer, _ in pairs], np.int64)
    assert len(np.unique(offers)) == len(offers), "an offer is on one block"
    assert tree.index.find(offers).tolist() == [number for _, number in pairs], "the index knows where every offer is"
    assert [tree.index.node(offer) for offer, _ in pairs] == tree.index.find(offers).tolist(), "asked one by one too"


def _check_cold(tree: Tree) -> None:
    if tree.cold is None:
        assert all(node.stamps is None for node in _nodes(tree)), "no stamps where nothing is evicted"
        return
    noted = tree.cold.numbers()
    for node in _nodes(tree):
        stamps = node.stamps
        assert stamps is not None and stamps.shape == (node.size,) and stamps.base is None, "a stamp a block"
        assert (np.diff(stamps) <= 0).all() and stamps[0] <= tree.clock, "deeper is never younger"
        above = None if node.parent is None else node.parent.stamps
        assert above is None or above[-1] >= stamps[0], "deeper is never younger"
        if node.children is None:
            assert noted.get(node.number, tree.clock + 1) <= stamps[-1], "every leaf is in the heap, not too late"
