"""A walk that is interrupted: whoever hears each visit and each later change ends up with what there is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.registry.trie.cursor import Cursor
from kvmarket.registry.trie.prefix_trie import PrefixTrie


@pytest.fixture(params=["few", "many"], autouse=True)
def _children(request: pytest.FixtureRequest) -> None:
    if request.param == "many":
        request.getfixturevalue("wide")


def paths(trie: PrefixTrie, cursor: Cursor) -> dict[tuple[bytes, bytes], tuple[int, ...]]:
    """The offers of every block that a cursor visits, by tenant and tokens."""
    found = {}
    while (visit := cursor.next()) is not None:
        found |= blocks_of(trie, visit)
    return found


def blocks_of(trie, visit) -> dict[tuple[bytes, bytes], tuple[int, ...]]:
    width, before = 4 * trie.block_size, visit.path()
    return {
        (visit.tenant, before + visit.tokens[: (block + 1) * width]): tuple(
            offer for offer in visit.offers[:, block].tolist() if offer >= 0
        )
        for block in range(visit.offers.shape[1])
    }


def test_every_block_once_and_those_above_first():
    trie = PrefixTrie(2)
    trie.insert([1, 2, 3, 4, 5, 6], [1, 2, 3])
    trie.insert([1, 2, 9, 9], [4, 5], tenant=b"")
    trie.insert([1, 2, 9, 9], [6, 7], tenant=b"t")
    cursor, seen = trie.cursor(), []
    while (visit := cursor.next()) is not None:
        assert len(visit.path()) == visit.depth * 8
        seen += list(blocks_of(trie, visit))
    assert len(seen) == len(set(seen)) == 6
    for tenant, path in seen:
        assert len(path) == 8 or (tenant, path[:-8]) in seen[: seen.index((tenant, path))]


def test_leaves_side_by_side_come_together():
    trie = PrefixTrie(1)
    trie.insert([7, 8], [1, 2])
    for leaf in range(5):
        trie.insert([7, 8, 20 + leaf], [10 + leaf], first=2)
    trie.insert([7, 8, 30, 31], [20, 21], first=2)
    cursor = trie.cursor()
    stem = cursor.next()
    assert stem is not None and stem.depth == 0 and stem.offers.shape[1] == 2
    assert cursor.leaves(3, lambda depth, above: False) is None, "nobody wants them"
    seen: list[int] = []
    while len(seen) < 5:
        leaves = cursor.leaves(3, lambda depth, above: (depth, above) == (2, stem.node))
        if leaves is None:
            assert cursor.next() is not None  # the one that has two blocks
            continue
        assert (leaves.tenant, leaves.depth, leaves.above) == (b"", 2, stem.node) and 1 <= len(leaves.tokens) <= 3
        for tokens, offer in zip(leaves.tokens, leaves.offers.tolist(), strict=True):
            assert np.frombuffer(tokens, np.int32).tolist() == [10 + offer]
        seen += leaves.offers.tolist()
    assert sorted(seen) == [10, 11, 12, 13, 14]
    while cursor.next() is not None:
        pass
    assert cursor.leaves(3, lambda depth, above: True) is None, "at the end"


@pytest.mark.parametrize("seed", range(40))
def test_random_changes_on_the_way(seed):
    """A listener puts in each visit and each change in order. At the end he has what there is."""
    chance = random.Random(seed)
    trie, where, offers = PrefixTrie(1), {}, iter(range(10**6))
    heard: dict[int, tuple[bytes, bytes]] = {}  # offer -> block, as the listener has it

    def change(told: bool) -> None:
        tenant = chance.choice((b"", b"t"))
        if where and chance.random() < 0.4:
            gone = chance.sample(sorted(where), min(len(where), chance.randint(1, 6)))
            trie.remove(gone)
            for offer in gone:
                del where[offer]
                heard.pop(offer, None)
            return
        tokens = np.array([chance.randrange(2) for _ in range(chance.randint(1, 9))], np.int32)
        first = chance.randrange(len(tokens))
        fresh = [next(offers) for _ in range(first, len(tokens))]
        trie.insert(tokens, fresh, first, tenant=tenant)
        for at, offer in enumerate(fresh, first):
            where[offer] = tenant, tokens[: at + 1].tobytes()
            above = [other for other, block in where.items() if block == (tenant, tokens[:at].tobytes())]
            # an offer that goes on from another one is refused by who does not know that one; else it names the prefix
            if told and (not above or any(other in heard for other in above)):
                heard[offer] = where[offer]

    for _ in range(60):
        change(told=False)
    cursor = trie.cursor()
    while (visit := cursor.next()) is not None:
        for block, there in blocks_of(trie, visit).items():
            for offer in there:
                assert where[offer] == block, "a visit tells what is so"
                heard[offer] = block
        for _ in range(chance.randint(0, 3)):
            change(told=True)
        trie._check()
    assert heard == where
