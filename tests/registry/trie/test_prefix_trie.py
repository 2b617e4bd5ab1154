"""The prefix trie by example: what is found, kept, taken down, evicted and refused."""

from __future__ import annotations

import doctest
import random
from itertools import count

import numpy as np
import pytest

from kvmarket.errors import MisuseError, TokenError
from kvmarket.registry.trie import prefix_trie
from kvmarket.registry.trie.node import OFFERS_PER_BLOCK
from kvmarket.registry.trie.offer_index import PAGE_BITS
from kvmarket.registry.trie.prefix_trie import PrefixTrie
from tests.registry.trie.contents import SmallNodes, contents


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(prefix_trie)
    assert result.attempted and not result.failed


def test_an_empty_trie_matches_nothing():
    held = PrefixTrie(4)
    assert held.match([1, 2, 3, 4]) == [] and held.match([]) == [] and held.match_all([]) == [] and len(held) == 0
    assert held.remove([1, 2]) == 0 and list(held.items()) == []
    held._check()


def test_only_whole_blocks_count():
    held = PrefixTrie(4)
    held.insert(range(11), [5, 6])
    assert len(held) == 2
    assert held.match(list(range(11))) == held.match(list(range(8))) == [5, 6]
    assert held.match(list(range(7))) == [5] and held.match([0, 1, 2]) == []
    held.insert([9, 9, 9], [])
    assert len(held) == 2


@pytest.mark.parametrize("place", [0, 3, 4, 20, 63])
def test_one_changed_token_ends_the_match_at_its_block(place):
    prompt = list(range(100, 164))
    held = PrefixTrie(4)
    held.insert(prompt, list(range(16)))
    prompt[place] ^= 1
    assert held.match(prompt) == list(range(place // 4))


def test_match_returns_the_newest_offer_and_plain_ints():
    held = PrefixTrie(2)
    for offer in [1, 2, 3, 1]:
        held.insert([7, 8], [offer])
        held._check()
    assert held.match([7, 8]) == [1] and held.match_all([7, 8]) == [(1, 3, 2)]
    assert type(held.match([7, 8])[0]) is int and type(held.match_all([7, 8])[0][0]) is int
    assert len(held) == 1


def test_a_block_keeps_a_bounded_number_of_offers_and_drops_the_oldest():
    held = PrefixTrie(2)
    for offer in range(OFFERS_PER_BLOCK + 3):
        held.insert([7, 8, 9, 9], [offer, 1000])
        held._check()
    newest = tuple(range(OFFERS_PER_BLOCK + 2, 2, -1))
    assert held.match_all([7, 8, 9, 9]) == [newest, (1000,)]
    assert held.remove([0, 1, 2]) == 0 and held.remove([3, newest[0], 1000]) == 3
    held._check()
    assert held.match_all([7, 8, 9, 9]) == [newest[1:-1]]


def test_offers_may_use_63_bits():
    held = PrefixTrie(1)
    held.insert([1, 2], [0, 2**63 - 1])
    assert held.match([1, 2]) == [0, 2**63 - 1]
    assert held.remove([2**63 - 1]) == 1 and held.match([1, 2]) == [0]


def test_a_removed_block_is_a_hole_while_there_are_blocks_below_it():
    held = PrefixTrie(1)
    held.insert([1, 2, 3, 4], [10, 11, 12, 13])
    assert held.remove([11]) == 1 and len(held) == 3
    held._check()
    assert held.match([1, 2, 3, 4]) == [10]
    held.insert([1, 2], [10, 21])
    assert held.match([1, 2, 3, 4]) == [10, 21, 12, 13]
    assert held.remove([12]) == 1 and held.remove([13]) == 1 and held._tree.stored == len(held) == 2
    held._check()


def test_an_offer_that_was_taken_down_may_go_on_another_block():
    held = SmallNodes(1)
    held.insert([1, 2, 3, 4], [5, 6, 7, 8])
    assert held.remove([7, 8, 7]) == 2 and held.remove([7]) == 0
    held.insert([4, 2, 3], [8, 9, 7])
    held._check()
    assert held.remove([7, 6]) == 2
    held._check()
    assert held.match([1, 2]) == [5] and held.match([4, 2, 3]) == [8, 9] and len(held) == 3


def test_what_is_forgotten_may_be_offered_again():
    held = PrefixTrie(1)
    held.insert([1, 2], [7 << 40, 7 << 40 | 1])
    held.insert([3], [8 << 40])
    held.remove([7 << 40, 7 << 40 | 1])
    held.forget(7 << 40, 2)
    held._check()
    assert list(held._tree.index._pages) == [8 << 40 - PAGE_BITS], "the memory of the others is given back"
    held.insert([4, 5], [7 << 40, 7 << 40 | 1])
    held._check()
    assert held.match([4, 5]) == [7 << 40, 7 << 40 | 1]


def test_offer_zero_is_an_offer():
    held = PrefixTrie(1)
    held.insert([1, 2, 3], [5, 6, 0])
    assert held.remove([6]) == 1
    held._check()
    held.insert([1, 2], [5, 7])
    assert held.match([1, 2, 3]) == [5, 7, 0]


def test_removing_everything_leaves_nothing():
    held = SmallNodes(2)
    held.insert(range(40), range(20))
    held.insert([*range(20), 5, 5], range(50, 61))
    assert held.remove(iter(range(20))) == 20 and held.remove({*range(50, 61)}) == 11
    held._check()
    assert len(held) == held._tree.stored == held._tree.pairs == 0 and held._tree.root.children == {}


def test_offers_from_a_later_block_on_leave_holes_before_it():
    held = PrefixTrie(2)
    held.insert([1, 2, 3, 4, 5, 6], [12], first=2)
    held._check()
    assert held.match([1, 2, 3, 4, 5, 6]) == [] and len(held) == 1
    held.insert([1, 2, 3, 4], [10, 11])
    assert held.match([1, 2, 3, 4, 5, 6]) == [10, 11, 12]
    held.insert([1, 2, 3, 4], [], first=2)
    held._check()


def test_the_least_recently_matched_leaf_blocks_go_first():
    held = PrefixTrie(1, max_blocks=6)
    held.insert([1, 2, 3], [1, 2, 3])
    held.insert([4, 5, 6], [4, 5, 6])
    assert held.match([1, 2]) == [1, 2]
    held.insert([7, 8], [7, 8])  # room for two: 3 is older than 6, 2 is not
    held._check()
    assert held.match([1, 2, 3]) == [1, 2] and held.match([4, 5, 6]) == [4, 5] and held.match([7, 8]) == [7, 8]
    held.insert(range(20), range(100, 120))
    held._check()
    assert len(held) == 6 and held.match(range(20)) == list(range(100, 106))


def test_items_build_an_equal_trie():
    chance = random.Random(5)
    held, again, numbers = SmallNodes(2), PrefixTrie(2), count()
    for _ in range(30):
        prompt = [chance.randrange(2) for _ in range(chance.randrange(2, 20))]
        held.insert(prompt, [next(numbers) for _ in range(len(prompt) // 2)])
    held.remove(range(0, next(numbers), 4))
    for prompt, offers in held.items():
        assert prompt.dtype == np.int32
        first = len(prompt) // 2 - len(offers)
        for age in range(OFFERS_PER_BLOCK, 0, -1):
            for block, known in enumerate(offers, first):
                if len(known) >= age:
                    again.insert(prompt[: (block + 1) * 2], [known[age - 1]], first=block)
    again._check()
    assert contents(again) == contents(held) and len(again) == len(held) > 10


def test_the_whole_range_of_int32_is_a_token():
    held = PrefixTrie(2)
    held.insert([-(2**31), 2**31 - 1], [1])
    assert held.match(np.array([-(2**31), 2**31 - 1])) == [1] and held.match([0, -1]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        [1, 2.0],
        [1, True],
        [0, False],
        [np.True_],
        [None],
        ["1"],
        [[1]],
        [2**31],
        [-(2**31) - 1],
        [2**70],
        "12",
        b"12",
        None,
        7,
        {1, 2},
        iter([1]),
        np.array([1.0]),
        np.array([True]),
        np.array([[1]], np.int32),
        np.array(1, np.int32),
        np.array([2**31]),
        np.array([2**32 - 1], np.uint32),
        np.array([-(2**31) - 1]),
        np.array([1, None]),
    ],
    ids=repr,
)
def test_what_is_not_a_token_is_refused(wrong):
    held = PrefixTrie(1)
    held.insert([1], [1])
    for call in (held.match, held.match_all, lambda given: held.insert(given, [1])):
        with pytest.raises(TokenError, match="give a flat list"):
            call(wrong)
    held._check()
    assert held.match([1]) == [1] and len(held) == 1


@pytest.mark.parametrize(
    ("offers", "first"),
    [
        ([1], 0),
        ([1, 2, 3], 0),
        ([-1, 2], 0),
        ([1, 2**63], 0),
        ([1.0, 2], 0),
        ([True, 2], 0),
        ([None, 2], 0),
        (["1", 2], 0),
        ([[1, 2]], 0),
        (np.array([1, 2**63], np.uint64), 0),
        ([1, 2], 1),
        ([], 3),
        ([1, 2, 3], -1),
    ],
)
def test_offers_that_do_not_fit_are_refused(offers, first):
    held = PrefixTrie(2)
    held.insert([1, 2], [4])
    with pytest.raises(MisuseError):
        held.insert([1, 2, 3, 4, 5], offers, first=first)
    held._check()
    assert held.match([1, 2, 3, 4]) == [4] and len(held) == 1


@pytest.mark.parametrize("arguments", [{"block_size": 0}, {"block_size": -1}, {"block_size": 1, "max_blocks": 0}])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(MisuseError):
        PrefixTrie(**arguments)
