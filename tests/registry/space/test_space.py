"""A space: what is put up is found, what is taken down is not, and bad offers change nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.errors import MessageError, MissingBlockError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import Before, OfferBlocks, PoolRecord, Snapshot
from kvmarket.registry.protocol.offering import Offering, offering_of
from kvmarket.registry.space.news import put_in
from kvmarket.registry.space.snapshot import SnapshotParts
from kvmarket.registry.space.space import Space

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


def _offering(
    pool: str,
    tenant: str,
    tokens: list[int],
    first: int,
    slots: list[int],
    before: Before | None = None,
    generation: int = 1,
) -> Offering:
    generations = np.full(len(slots), generation, np.uint64)
    return Offering(
        pool, tenant, np.array(tokens, np.int32), first, np.array(slots, np.int64), 1, generations, None, before
    )


def tell(space: Space, other: Space) -> int:
    """Tell one space all that stands in another one; in how many parts."""
    parts, count = SnapshotParts([space]), 0
    while not parts.done:
        for change in parts.part():
            if isinstance(change, Snapshot):
                count += 1
                for _ in put_in(other, change):
                    pass
    return count


def found(space: Space, tokens: list[int], first: int = 0, without: tuple[str, ...] = (), tenant: str = ""):
    runs = space.match(np.asarray(tokens, np.int32), tenant, first, without)
    return [
        (run.pool, slot, generation)
        for run in runs
        for slot, generation in zip(run.slots.tolist(), run.generations.tolist(), strict=True)
    ]


def collect(space: Space) -> int:
    """Collect all there is, in how many steps."""
    steps = 0
    while space.collecting:
        space.collect()
        steps += 1
    return steps


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
    collect(space)
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


def test_an_offer_goes_on_from_exactly_one_block(space):
    """Its slot, epoch and generation, its depth, and its tenant."""
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    offer(space, "pa", [1, 2, 3, 4], [17, 18], tenant="t")

    def more(before: Before, first: int = 2, tenant: str = "", slot: int = 9, generation: int = 1) -> None:
        space.offer(_offering("pa", tenant, [5, 6], first, [slot], before, generation))

    for wrong in (
        Before(8, 1, 2),
        Before(8, 2, 1),
        Before(9, 1, 1),
        Before(7, 1, 1),
        Before(18, 1, 1),
        Before(99, 1, 1),
    ):
        with pytest.raises(MissingBlockError, match="not on offer there"):
            more(wrong)
    for arguments in ({"first": 1}, {"first": 3}, {"tenant": "t"}, {"slot": 8, "generation": 2}):
        with pytest.raises(MissingBlockError):
            more(Before(8, 1, 1), **arguments)
    assert space.blocks == 4
    more(Before(8, 1, 1))
    assert found(space, [1, 2, 3, 4, 5, 6]) == [("pa", 7, 1), ("pa", 8, 1), ("pa", 9, 1)]
    assert found(space, [1, 2, 3, 4, 5, 6], tenant="t") == [("pa", 17, 1), ("pa", 18, 1)]
    offer(space, "pa", [8, 8, 9, 9], [6, 8], generation=2)  # another block in that slot, as deep as the one before
    with pytest.raises(MissingBlockError):
        more(Before(8, 1, 1), slot=10)


def test_what_stands_already_is_not_put_up_again(space):
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    clock = space.trie._tree.clock
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    assert space.trie._tree.clock == clock
    offer(space, "pa", [1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert len(found(space, [1, 2, 3, 4, 5, 6])) == 3


def test_a_tenant_costs_nothing_but_its_blocks(space):
    for number in range(100):
        offer(space, "pa", [1, 2], [number % 90], generation=number + 1, tenant=f"tenant {number}")
    assert space.blocks == 90
    assert len(space.trie._tree.root.children) == 90
    assert found(space, [1, 2], tenant="tenant 99") == [("pa", 9, 100)]
    assert found(space, [1, 2], tenant="tenant 9") == []


def test_a_tenant_cannot_pose_as_another_ones_tokens(space):
    """Below the root a node stands under its tenant and its first block: where one ends must be plain."""
    tokens = np.array([0x41414141, 0x42424242], np.int32)
    offer(space, "pa", tokens.tolist(), [1], tenant="t")
    assert found(space, tokens.tolist()[:1], tenant="tAAAA") == []
    assert found(space, tokens.tolist()[1:], tenant="tAAAA") == []
    assert found(space, tokens.tolist(), tenant="t") == [("pa", 1, 1)]


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
            tell(space, copy)
            assert copy.blocks == space.blocks
            assert {pool: each.standing().tolist() for pool, each in copy.pools.items()} == {
                pool: each.standing().tolist() for pool, each in space.pools.items()
            }
            assert [block for block in found(copy, query)] == result
