"""The prefix trie, told what goes on from blocks that it has: as inserting the whole prefix, without telling it."""

from __future__ import annotations

import random
from itertools import count

import numpy as np
import pytest

from kvmarket.errors import MisuseError
from kvmarket.registry.trie.prefix_trie import PrefixTrie
from tests.registry.trie.contents import contents


def test_extend_goes_on_from_an_offered_block():
    trie = PrefixTrie(2, max_blocks=100)
    trie.insert([1, 2, 3, 4], [10, 11])
    assert trie.extend(11, [5, 6, 7, 8], [12, 13])
    assert trie.match([1, 2, 3, 4, 5, 6, 7, 8]) == [10, 11, 12, 13]
    assert trie.extend(10, [9, 9], [20]), "from the middle of a node"
    assert trie.match([1, 2, 9, 9]) == [10, 20]
    assert trie.extend(11, [5, 6], [30]), "over blocks that are there"
    assert trie.match([1, 2, 3, 4, 5, 6, 7, 8]) == [10, 11, 30, 13]
    assert [trie.depth(trie.place(offer)) for offer in (10, 11, 30, 13, 20)] == [1, 2, 3, 4, 2]
    assert trie.place(77) is None
    trie._check()
    assert not trie.extend(77, [5, 6], [31])
    for tokens, offers in (([1], [1]), ([1, 2], [1, 2]), ([1, 2], [-1])):
        with pytest.raises(MisuseError):
            trie.extend(11, tokens, offers)


def test_a_fan_is_as_one_block_after_the_other():
    """Many blocks behind the same one, at once; where it cannot be at once nothing is done."""
    chance = random.Random(4)
    for _ in range(50):
        at_once, one_by_one = PrefixTrie(2, max_blocks=12), PrefixTrie(2, max_blocks=12)
        stem, numbers = [chance.randrange(3) for _ in range(2 * chance.randint(1, 3))], count(100)
        tails = [[chance.randrange(3), chance.randrange(3)] for _ in range(chance.randint(1, 5))]
        longer = chance.random() < 0.2  # something goes on in the same node
        for each in (at_once, one_by_one):
            each.insert([9, 9, 9, 9], [1, 2])
            each.insert(stem, range(10, 10 + len(stem) // 2))
            if longer:
                each.insert([*stem, 7, 7], [50], first=len(stem) // 2)
        last = 9 + len(stem) // 2
        heads, offers = [np.array(tail, np.int32).tobytes() for tail in tails], [next(numbers) for _ in tails]
        place = at_once.place(last)
        before = contents(at_once)
        done = at_once.fan(place, heads, np.array(offers, np.int64))
        at_once._check()
        assert done == (len(tails) > 1 and len(set(heads)) == len(tails) and not longer)
        if not done:
            assert contents(at_once) == before
            continue
        for tail, offer in zip(tails, offers, strict=True):
            one_by_one.extend(last, tail, [offer])
        one_by_one._check()
        assert contents(at_once) == contents(one_by_one)


def test_extend_is_as_inserting_the_whole_prefix():
    """Random growth of conversations in both ways; holes, splits and joins included."""
    chance = random.Random(11)
    grown, whole = (PrefixTrie(2, max_blocks=500) for _ in range(2))
    paths: dict[int, list[int]] = {}
    for offer in range(1, 600):
        before = chance.choice(list(paths)) if paths and chance.random() < 0.8 else None
        tokens = [chance.randrange(2) for _ in range(2)]
        if before is None:
            grown.insert(tokens, [offer])
            path = tokens
        else:
            path = paths[before] + tokens
            assert grown.extend(before, tokens, [offer]) == (before in grown_offers(grown))
            if offer not in grown_offers(grown):
                continue
        whole.insert(path, [offer], first=len(path) // 2 - 1)
        paths[offer] = path
        if chance.random() < 0.3:
            gone = chance.choice(list(paths))
            del paths[gone]
            assert grown.remove([gone]) == whole.remove([gone])
        grown._check()
        query = [chance.randrange(2) for _ in range(20)]
        assert grown.match_all(query) == whole.match_all(query)
        paths = {offer: path for offer, path in paths.items() if grown.place(offer)}


def grown_offers(trie):
    return {offer for _, offers in trie.items() for each in offers for offer in each}
