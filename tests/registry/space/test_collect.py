"""What is taken down counts no more at once, and leaves the trie little by little."""

from __future__ import annotations

import numpy as np

from kvmarket.registry.space.space import FEW, PART
from tests.registry.space.test_space import collect, found, offer, record, space

__all__ = ["space"]


def test_much_is_taken_down_at_once_and_leaves_the_trie_little_by_little(space):
    tokens = list(range(2 * 60))
    for slot in range(60):  # a node each
        offer(space, "pa", [slot, 99], [slot])
    offer(space, "pb", tokens, list(range(60)))
    gone = space.retire("pa", np.arange(50))
    assert gone.tolist() == list(range(50))
    assert found(space, [7, 99]) == []
    assert found(space, [55, 99]) == [("pa", 55, 1)]
    assert space.collecting
    offer(space, "pa", [7, 7], [7], generation=2)
    assert found(space, [7, 99]) == []
    assert found(space, [7, 7]) == [("pa", 7, 2)]
    assert collect(space) > 50 // FEW
    assert found(space, [7, 7]) == [("pa", 7, 2)]
    assert space.blocks == 60 + 10 + 1
    assert found(space, tokens)[59] == ("pb", 59, 1)
    space.trie._check()


def test_a_pool_that_is_emptied_is_filled_anew_while_the_old_offers_leave(space):
    for slot in range(60):
        offer(space, "pa", [slot, 99], [slot])
    offer(space, "pb", [5, 99], [0])
    assert len(space.retire("pa", None)) == 60
    assert found(space, [5, 99]) == [("pb", 0, 1)], "what another pool has there is found at once"
    offer(space, "pa", [5, 99, 1, 1], [5, 6], generation=2)
    assert found(space, [5, 99, 1, 1]) == [("pa", 5, 2), ("pa", 6, 2)]
    collect(space)
    assert found(space, [5, 99, 1, 1]) == [("pa", 5, 2), ("pa", 6, 2)]
    assert space.blocks == 2
    space.trie._check()


def test_slots_that_are_offered_again_at_once_leave_no_work(space):
    """As a prompt does that takes the place of another: its blocks are retired and offered in one message."""
    slots = list(range(60))
    offer(space, "pa", list(range(120)), slots)
    space.retire("pa", np.array(slots))
    offer(space, "pa", list(range(500, 620)), slots, generation=2)
    assert collect(space) == 1, "one look, and no step for offers that have left the trie already"
    assert space.blocks == 60
    space.trie._check()


def test_many_slots_that_are_offered_again_are_looked_at_in_parts(space):
    space.add_pool(record("many", 3 * PART))
    slots = list(range(2 * PART + 1))
    offer(space, "many", list(range(2 * len(slots))), slots)
    space.retire("many", np.array(slots))
    offer(space, "many", list(range(9, 2 * len(slots) + 9)), slots, generation=2)
    assert collect(space) == 3, "one step a part"
    assert space.blocks == len(slots)


def test_many_slots_leave_all(space):
    space.add_pool(record("many", 2 * PART))
    slots = list(range(PART + FEW))
    offer(space, "many", list(range(2 * len(slots))), slots)
    space.retire("many", np.array(slots))
    assert collect(space) >= (PART + FEW) // FEW
    assert space.blocks == 0
    space.trie._check()


def test_a_large_pool_without_offers_leaves_little_by_little(space):
    space.add_pool(record("large", 10 * 65536))
    space.drop_pool("large")
    assert collect(space) > 10, "each look at 65,536 slots is a step of its own"


def test_numbers_of_pools_are_used_again(space):
    for turn in range(50):
        offer(space, "pa", [1, 2], [turn])
        space.retire("pa", None)
        collect(space)
    space.drop_pool("pa")
    space.drop_pool("pb")
    collect(space)
    assert max(space.add_pool(record(name)).number for name in ("x", "y")) <= 5
