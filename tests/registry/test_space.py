"""A space: what is put up is found, what is taken down is not, and bad offers change nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.errors import MessageError
from kvmarket.registry.messages import OfferBlocks, PoolRecord
from kvmarket.registry.offering import Offering, offering_of
from kvmarket.registry.space import Space
from kvmarket.shared_file import Process

ME = Process(1, 1, 1)
SIZE = 2


def record(pool: str, slots: int = 100) -> PoolRecord:
    return PoolRecord(pool, slots, (ME,), b"about " + pool.encode())


def made(*pools: str) -> Space:
    space = Space(SIZE)
    for pool in pools:
        space.add_pool(record(pool))
    return space


def offer(
    space: Space, pool: str, tokens: list[int], slots: list[int], generation: int = 1, tenant: str = "", first: int = 0
) -> None:
    data = np.asarray(tokens, np.int32).tobytes()
    ids, generations = np.array(slots, np.int64), np.full(len(slots), generation, np.uint64)
    message = OfferBlocks(pool, tenant, data, first, ids.tobytes(), 1, generations.tobytes())
    space.offer(offering_of(message, SIZE))


def found(space: Space, tokens: list[int], first: int = 0, without: tuple[str, ...] = (), tenant: str = ""):
    runs = space.match(np.asarray(tokens, np.int32), tenant, first, without)
    return [
        (run.pool, slot, generation)
        for run in runs
        for slot, generation in zip(run.slots.tolist(), run.generations.tolist(), strict=True)
    ]


@pytest.fixture
def space():
    return made("pa", "pa2", "pb")


def test_offer_and_match(space):
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    assert found(space, [1, 2, 3, 4, 5, 6]) == [("pa", 7, 1), ("pa", 8, 1)]
    assert found(space, [1, 2, 9, 9]) == [("pa", 7, 1)]
    assert found(space, [1, 2, 3, 4], first=1) == [("pa", 8, 1)]
    assert found(space, [1, 2, 3, 4], without=("pa",)) == []
    assert space.blocks == 2


def test_tenants_are_apart(space):
    offer(space, "pa", [1, 2], [7])
    assert found(space, [1, 2], tenant="t") == []
    offer(space, "pb", [1, 2], [3], tenant="t")
    assert found(space, [1, 2], tenant="t") == [("pb", 3, 1)]


def test_the_pool_of_the_block_before_is_preferred(space):
    offer(space, "pa", [1, 2, 3, 4, 5, 6], [0, 1, 2])
    offer(space, "pb", [1, 2, 3, 4], [0, 1])
    assert found(space, [1, 2, 3, 4, 5, 6]) == [("pb", 0, 1), ("pb", 1, 1), ("pa", 2, 1)]
    assert found(space, [1, 2, 3, 4, 5, 6], without=("pb",)) == [("pa", slot, 1) for slot in range(3)]


def test_a_slot_stands_for_its_newest_offer_only(space):
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    offer(space, "pa", [5, 6], [7], generation=2)
    assert found(space, [1, 2, 3, 4]) == []
    assert found(space, [5, 6]) == [("pa", 7, 2)]
    with pytest.raises(MessageError, match="older"):
        offer(space, "pa", [1, 2], [7], generation=1)
    assert found(space, [5, 6]) == [("pa", 7, 2)]


def test_a_slot_moves_between_tenants(space):
    offer(space, "pa", [1, 2], [7])
    offer(space, "pa", [1, 2], [7], generation=2, tenant="t")
    assert found(space, [1, 2]) == []
    assert found(space, [1, 2], tenant="t") == [("pa", 7, 2)]


def test_retire_and_drop(space):
    offer(space, "pa", [1, 2, 3, 4, 5, 6], [0, 1, 2])
    offer(space, "pa2", [1, 2], [9])
    assert space.retire("pa", np.array([1, 77, 1])).tolist() == [1]
    assert len(found(space, [1, 2, 3, 4, 5, 6])) == 1
    assert space.retire("pa", None).tolist() == [0, 2]
    assert found(space, [1, 2]) == [("pa2", 9, 1)]
    space.drop_pool("pa2")
    space.drop_pool("pa2")
    assert found(space, [1, 2]) == []
    assert space.blocks == 0
    for pool, slots in (("pa2", [1]), ("pa", [100]), ("pa", [-1])):
        with pytest.raises(MessageError):
            space.retire(pool, np.array(slots))


def test_runs_are_cut_where_epochs_change(space):
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    offering = Offering(
        "pa", "", np.array([1, 2, 3, 4, 5, 6], np.int32), 2, np.array([9]), 5, np.array([4], np.uint64), None
    )
    space.offer(offering)
    runs = space.match(np.array([1, 2, 3, 4, 5, 6], np.int32), "", 0, ())
    assert [(run.epoch, run.slots.tolist()) for run in runs] == [(1, [7, 8]), (5, [9])]


@pytest.mark.parametrize(
    "bad",
    [
        {"pool": "nobody's"},
        {"tokens": [1, 2, 3]},
        {"tokens": [1, 2]},
        {"slots": [4, 4]},
        {"slots": [4, 100]},
        {"slots": [-1, 4]},
        {"slots": []},
        {"first": 1},
        {"generation": 0},
    ],
)
def test_bad_offers_change_nothing(space, bad):
    offer(space, "pa", [8, 8], [1])
    with pytest.raises(MessageError):
        offer(space, **{"pool": "pa", "tokens": [1, 2, 3, 4], "slots": [1, 2], "generation": 5, **bad})
    assert found(space, [8, 8]) == [("pa", 1, 1)]
    assert space.blocks == 1


def test_bytes_that_are_no_whole_numbers():
    good = OfferBlocks("pa", "", bytes(8), 0, bytes(8), 1, b"\1" + bytes(7))
    offering_of(good, SIZE)
    for field in ("tokens", "slots", "generations", "checksums"):
        values = {name: getattr(good, name) for name in good.__struct_fields__}
        with pytest.raises(MessageError):
            offering_of(OfferBlocks(**{**values, field: bytes(9)}), SIZE)


def test_random_offers_against_a_plain_list():
    """Whatever is put up, retired and left, a match is the longest prefix of blocks that somebody offers.

    And a space made from the changes of another one answers the same.
    """
    chance, truth = random.Random(3), {}
    members = ["pa", "pb", "pc"]
    space = made(*members)
    for generation in range(1, 601):
        name, tokens = chance.choice(members), [chance.randrange(2) for _ in range(2 * chance.randrange(1, 6))]
        slots = chance.sample(range(12), len(tokens) // 2 if (offers := chance.random() < 0.6) else 4)
        truth = {key: block for key, block in truth.items() if key[0] != name or key[1] not in slots}
        if offers:
            offer(space, name, tokens, slots, generation)
            truth |= {(name, slot): tuple(tokens[: 2 * (at + 1)]) for at, slot in enumerate(slots)}
        else:
            space.retire(name, np.array(slots))
        query, offered = [chance.randrange(2) for _ in range(10)], set(truth.values())
        longest = next((n for n in range(5) if tuple(query[: 2 * (n + 1)]) not in offered), 5)
        result = found(space, query)
        assert len(result) == longest
        assert all(truth[pool, slot] == tuple(query[: 2 * (at + 1)]) for at, (pool, slot, _) in enumerate(result))
        assert space.blocks == len(offered)
        if generation % 20 == 0:
            copy = made(*members)
            for offering in space.offerings():
                copy.offer(offering)
            assert copy.blocks == space.blocks
            assert {pool: each.standing().tolist() for pool, each in copy.pools.items()} == {
                pool: each.standing().tolist() for pool, each in space.pools.items()
            }
            assert [block for block in found(copy, query)] == result
