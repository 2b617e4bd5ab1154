"""Putting branches up that do not stand yet: one by one, and many at once where they hang side by side."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.space import Space
from tests.registry.space.test_snapshot import parts_of, put
from tests.registry.space.test_space import SIZE, found, made, offer, record, tell


def test_leaves_side_by_side_are_put_up_together():
    """Of several pools, some there already, some in a slot that holds something else, in another tenant too."""
    space, copy = made("pa", "pb"), made("pa", "pb")
    for leaf in range(60):
        offer(space, ("pa", "pb")[leaf % 3 == 0], [1, 2, leaf, leaf], [99, leaf], generation=2)
    offer(space, "pa", [1, 2, 7, 7, 8, 8], [99, 7, 80], generation=2)
    offer(space, "pb", [1, 2, 9, 9], [99, 61], generation=2)
    offer(copy, "pa", [1, 2, 4, 4], [99, 4], generation=2)
    offer(copy, "pa", [5, 5], [10])
    copy.retire("pa", np.arange(20, 40))
    for generation in (1, 2):
        tell(space, copy)
        for leaf in range(60):
            assert found(copy, [1, 2, leaf, leaf]) == found(space, [1, 2, leaf, leaf]), leaf
        copy.trie._check()
        offer(space, "pa", [3, 3], [11], generation=generation + 1)
    assert len(found(copy, [1, 2, 7, 7, 8, 8])) == 3


@pytest.mark.parametrize("epochs", [(1, 1), (1, 2), (2, 2)])
def test_leaves_go_up_at_once_where_they_are_of_one_pool_and_epoch(monkeypatch, epochs):
    """All but those of the first message: while there is one alone, it is one node with what is above it."""
    done: list[int] = []
    fan = Space.fan

    def counted(space: Space, offering: Offering) -> bool:
        whole = fan(space, offering)
        done.extend(offering.slots.tolist() if whole else [])
        return whole

    monkeypatch.setattr(Space, "fan", counted)
    leaves, stands, (space, copy) = 390, 300, (Space(SIZE), Space(SIZE))
    for each in (space, copy):
        each.add_pool(record("pa", leaves + 1))
    offer(copy, "pa", [5, 5], [stands])  # one of the slots still holds something else there
    offer(space, "pa", [1, 2], [leaves])
    for leaf in range(leaves):
        tokens, generations = np.array([1, 2, leaf, leaf], np.int32), np.array([leaf + 1], np.uint64)
        space.offer(Offering("pa", "", tokens, 1, np.array([leaf]), epochs[leaf % 2], generations, None))
    for message in parts_of(space):
        put(copy, message)
        copy.trie._check()
    assert (len(done) > leaves / 2) == (epochs[0] == epochs[1]) and stands not in done
    assert found(copy, [5, 5]) == [] and len(found(copy, [1, 2, stands, stands])) == 2
    pool = copy.pools["pa"]
    assert pool.epochs[:leaves].tolist() == [epochs[leaf % 2] for leaf in range(leaves)]
    assert pool.generations[:leaves].tolist() == list(range(1, leaves + 1))


@pytest.mark.parametrize("twice", [False, True])
def test_leaves_that_begin_alike_are_put_up_one_by_one(twice):
    """As no cursor tells them: the second offer of a block joins the first."""
    space = made("pa")
    offer(space, "pa", [1, 2], [9])
    for leaf in range(6):
        offer(space, "pa", [1, 2, leaf, leaf], [9, leaf])
    (message,) = parts_of(space)
    tokens = np.frombuffer(message.tokens, np.int32).copy()
    if twice:
        tokens[-SIZE:] = tokens[-2 * SIZE : -SIZE]
    copy = made("pa")
    put(copy, msgspec.structs.replace(message, tokens=tokens.tobytes()))
    copy.trie._check()
    assert len(found(copy, [1, 2, 4, 4])) == 2
    assert copy.blocks == (6 if twice else 7)
