"""A match takes offers of far pools only where no other pool has the block."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import PoolRecord
from kvmarket.registry.space.space import Space
from tests.registry.space.test_space import SIZE, offer, tell

FAR = ("far", "farther")
NEAR = ("near", "nearer", "own")


def made(*pools: str) -> Space:
    space = Space(SIZE)
    for pool in pools:
        space.add_pool(PoolRecord(pool, 100, (Process(1, 1, 1),), b"", lent=pool in FAR, far=pool in FAR))
    return space


def pools(space: Space, tokens: list[int], *without: str, first: int = 0) -> list[tuple[str, list[int]]]:
    return [(run.pool, run.slots.tolist()) for run in space.match(np.array(tokens, np.int32), "", first, without)]


def test_a_far_pool_is_taken_where_no_other_has_the_block():
    space, tokens = made("near", "far"), [1, 2, 3, 4, 5, 6]
    offer(space, "near", tokens, [10, 11, 12])
    offer(space, "far", tokens, [20, 21, 22])
    assert pools(space, tokens) == [("near", [10, 11, 12])], "though the far offers are newer"
    space.retire("near", np.array([11]))
    assert pools(space, tokens) == [("near", [10]), ("far", [21]), ("near", [12])]
    assert pools(space, tokens, "near") == [("far", [20, 21, 22])]
    assert pools(space, tokens, "far") == [("near", [10])]
    assert pools(space, tokens, first=1) == [("far", [21]), ("near", [12])]


def test_a_run_of_a_far_pool_ends_where_another_pool_has_the_block():
    space, tokens = made("near", "far"), [1, 2, 3, 4]
    offer(space, "far", tokens, [20, 21])
    offer(space, "near", tokens, [11], first=1)
    assert pools(space, tokens) == [("far", [20]), ("near", [11])]


def test_of_far_pools_that_of_the_block_before_is_taken_then_the_newest():
    space, tokens = made("far", "farther"), [1, 2, 3, 4]
    offer(space, "far", tokens[:2], [20])
    offer(space, "farther", tokens, [30, 31])
    offer(space, "far", tokens, [22], first=1)
    assert pools(space, tokens) == [("farther", [30, 31])]


@pytest.mark.parametrize("how", ["retired", "dropped", "told"])
def test_a_pool_stays_far(how):
    space, tokens = made("near", "far"), [1, 2]
    if how == "retired":
        offer(space, "far", tokens, [3])
        space.retire("far", None)
    elif how == "dropped":
        space.drop_pool("far")
        space.add_pool(made("far").pools["far"].record)
    offer(space, "near", tokens, [1])
    offer(space, "far", tokens, [2])
    if how == "told":
        other = made("near", "far")
        tell(space, other)
        space = other
    assert pools(space, tokens) == [("near", [1])]


def test_numbers_of_far_pools_are_free_for_others_when_they_have_left():
    space, tokens = made("far", "near"), [1, 2]
    number = space.pools["far"].number
    space.drop_pool("far")
    while space.collecting:
        space.collect()
    space.add_pool(made("nearer").pools["nearer"].record)
    assert space.pools["nearer"].number == number
    offer(space, "near", tokens, [1])
    offer(space, "nearer", tokens, [2])
    assert pools(space, tokens) == [("nearer", [2])], "the newest"


def test_random_offers():
    """As many blocks are found as any pool offers; each in a pool that offers it, and in a far one only if all are."""
    chance = random.Random(5)
    names = FAR + NEAR
    for _ in range(300):
        space, offered, tokens = made(*names), {}, [chance.randrange(3) for _ in range(2 * SIZE * 6)]
        for turn in range(chance.randrange(1, 12)):
            name = chance.choice(names)
            first = chance.randrange(6)
            count = chance.randrange(1, 12 - first)
            slots = list(range(turn * 8, turn * 8 + count))
            if slots[-1] >= 100 or count > 8:
                continue
            offer(space, name, tokens[: (first + count) * SIZE], slots, first=first)
            offered |= {(name, first + at): slot for at, slot in enumerate(slots)}
        without = chance.sample(names, chance.choice((0, 0, 1, 2)))
        at = 0
        for name, slots in pools(space, tokens, *without):
            for slot in slots:
                there = {each for each in names if (each, at) in offered and each not in without}
                assert name in there and offered[name, at] == slot
                assert name not in FAR or there <= set(FAR)
                at += 1
        assert not any((each, at) in offered for each in names if each not in without)
