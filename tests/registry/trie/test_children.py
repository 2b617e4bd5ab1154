"""The children of a node that has many: a dict, but never copied or listed in one piece."""

from __future__ import annotations

import gc
import random

import pytest

from kvmarket.registry.trie.children import SHARD, WIDE, Children
from kvmarket.registry.trie.node import Node
from kvmarket.registry.trie.prefix_trie import PrefixTrie


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def test_a_dict_over_random_changes(wide):
    chance = random.Random(1)
    kept = {key(number): object() for number in range(5)}
    children, oracle = Children(dict(kept)), dict(kept)
    for _ in range(3000):
        some = key(chance.randrange(400))
        if chance.random() < 0.6:
            children[some] = oracle[some] = object()
        elif some in oracle:
            del children[some], oracle[some]
        else:
            with pytest.raises(KeyError):
                del children[some]
        assert (some in children) == (some in oracle) and children.get(some) is oracle.get(some)
        assert len(children) == len(oracle) and bool(children) == bool(oracle)
    assert set(children.values()) == set(oracle.values())
    for some, value in oracle.items():
        assert children.get(some) is value
    assert len(children.shards) > 50


def test_no_shard_is_large():
    children = Children({key(number): object() for number in range(WIDE)})
    for number in range(WIDE, 60_000):
        children[key(number)] = object()
        assert len(children.shards) >= len(children) / SHARD
    assert max(map(len, children.shards)) < 3 * SHARD  # those whose turn has not come are twice as large


@pytest.mark.parametrize("seed", range(20))
def test_whoever_goes_through_the_shards_meets_all_that_stay(seed, wide):
    chance = random.Random(seed)
    children = Children({key(number): object() for number in range(40)})
    at, met, gone = 0, set(), set()
    while at < len(children.shards):
        met |= set(children.shards[at])
        at += 1
        for _ in range(chance.randrange(6)):
            children[key(chance.randrange(1000, 1200))] = object()
        if chance.random() < 0.3 and (some := key(chance.randrange(40))) in children:
            del children[some]
            gone.add(some)
    assert met >= {key(number) for number in range(40)} - gone


def test_a_node_keeps_few_children_in_a_dict_and_many_in_shards():
    trie = PrefixTrie(1)
    trie.insert([7, 8], [1, 2])
    for leaf in range(WIDE + 1):
        trie.insert([7, 8, 20 + leaf], [10 + leaf], first=2)
        (stem,) = trie._tree.root.children.values()
        assert isinstance(stem.children, Children) == (leaf >= WIDE)
    trie._check()
    assert trie.match([7, 8, 20 + WIDE]) == [1, 2, 10 + WIDE]


def test_a_node_that_is_joined_keeps_its_many_children(wide):
    """Whatever is above its children changes; they are not told one by one."""
    trie = PrefixTrie(1)
    trie.insert([7, 8], [1, 2])
    for leaf in range(9):
        trie.insert([7, 8, 20 + leaf], [10 + leaf], first=2)
    (stem,) = trie._tree.root.children.values()
    children = stem.children
    trie.insert([7, 9], [3], first=1)  # cuts the stem in two
    trie._check()
    trie.remove([3])  # and this joins its halves
    trie._check()
    (joined,) = trie._tree.root.children.values()
    assert joined.children is children and joined.size == 2
    assert all(child.parent is joined for child in children.values())


def test_a_cleared_trie_gives_all_nodes_back_at_once_and_is_empty(wide):
    trie = PrefixTrie(1)
    for leaf in range(9):
        trie.insert([7, 8, leaf, 5], [4 * leaf + at for at in range(4)])
    gc.collect()
    gc.disable()
    try:
        before = sum(type(each) is Node for each in gc.get_objects())
        trie.clear()
        assert before - sum(type(each) is Node for each in gc.get_objects()) >= 10, "without Python's collector"
    finally:
        gc.enable()
    trie._check()
    assert len(trie) == 0 and trie.match([7, 8, 1, 5]) == []
    trie.insert([7, 8], [1, 2])
    assert trie.match([7, 8]) == [1, 2]
