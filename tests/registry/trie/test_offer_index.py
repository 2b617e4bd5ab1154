"""Where offers are found again: pages that come and grow with them, in any order, and go."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.registry.trie import offer_index
from kvmarket.registry.trie.offer_index import OfferIndex
from kvmarket.registry.trie.prefix_trie import PrefixTrie


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 16 offers, the first two of which come first."""
    monkeypatch.setattr(offer_index, "PAGE_BITS", 4)
    monkeypatch.setattr(offer_index, "_LOW", 15)
    monkeypatch.setattr(offer_index, "_LEAST", 2)


def test_says_of_each_offer_where_it_was_put_last(small):
    chance = random.Random(1)
    index, known = OfferIndex(), {}
    for _ in range(300):
        offers = chance.sample(range(0, 200, chance.choice((1, 1, 3))), chance.choice((1, 2, 9)))
        numbers = [chance.randrange(1, 1000) for _ in offers]
        if chance.random() < 0.5:
            numbers = numbers[:1] * len(offers)
            index.add(np.array(offers, np.int64), numbers[0])
        else:
            index.add(np.array(offers, np.int64), np.array(numbers, np.int32))
        known.update(zip(offers, numbers, strict=True))
        asked = [chance.randrange(220) for _ in range(chance.choice((1, 5, 40)))]
        assert index.find(np.array(asked, np.int64)).tolist() == [known.get(offer, 0) for offer in asked]
        assert [index.node(offer) for offer in asked] == [known.get(offer, 0) for offer in asked]


def test_the_largest_offers_too():
    index = OfferIndex()
    offers = np.array([0, 1, 77 << 40 | 5, 2**63 - 1], np.int64)
    index.add(offers, np.array([1, 2, 3, 2**31 - 1], np.int32))
    assert index.find(offers[::-1]).tolist() == [2**31 - 1, 3, 2, 1]
    assert index.find(offers[:0]).tolist() == []
    assert (index.node(77 << 40 | 6), index.node(78 << 40)) == (0, 0)


def test_forgets_pages_of_those_offers_and_no_others(small):
    index = OfferIndex()
    index.add(np.arange(100, dtype=np.int64), 5)
    index.forget(32, 17)  # up to one offer of the page that begins at 48
    assert [offer for offer in range(100) if index.node(offer)] == [*range(32), *range(64, 100)]
    index.forget(1 << 40, 100)
    assert index.node(0) == 5


def test_slots_that_are_used_again_and_again_take_no_more_memory_nor_time():
    """Each offer is found by one look, however often its slot has moved: no chain and no rebuilding."""
    trie, offers = PrefixTrie(block_size=1), np.arange(64, dtype=np.int64)
    for turn in range(2000):
        trie.remove(offers[turn % 64 : turn % 64 + 1])
        trie.insert([turn % 97, turn], offers[turn % 64 : turn % 64 + 1], first=1)
    trie._check()
    (page,) = trie._tree.index._pages.values()
    assert page.nbytes == 1 << 10


def test_a_page_is_as_large_as_what_is_in_it_or_expected():
    index = OfferIndex()
    index.add(np.array([7 << 40], np.int64), 1)
    assert sum(page.nbytes for page in index._pages.values()) == 1 << 10
    index.add(np.arange(300_000, dtype=np.int64) | 7 << 40, 2)
    assert sum(page.nbytes for page in index._pages.values()) == 4 << 19
    assert index.node(7 << 40) == index.node(7 << 40 | 299_999) == 2 and index.node(7 << 40 | 300_000) == 0


def test_what_is_expected_needs_no_page_to_grow(small):
    index = OfferIndex()
    index.expect(32, 45)
    assert {high: page.size for high, page in index._pages.items()} == {2: 16, 3: 16, 4: 16}
    pages = dict(index._pages)
    index.add(np.arange(32, 77, dtype=np.int64), 3)
    assert all(index._pages[high] is page for high, page in pages.items())
    index.expect(32, 0)
    index.expect(96, 1)
    assert index.find(np.arange(30, 79, dtype=np.int64)).tolist() == [0, 0, *[3] * 45, 0, 0]
    assert index._pages[6].size == 2
