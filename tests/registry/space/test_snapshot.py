"""What stands, told in parts: complete, in order, as long as what stands, and refused where its parts do not fit."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from kvmarket.errors import MessageError
from kvmarket.registry.protocol.messages import Changes as ChangesMessage
from kvmarket.registry.protocol.messages import PoolJoined, Promise, Snapshot, SnapshotEnd, pack_message
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.put_branches import put_branches
from kvmarket.registry.space.snapshot import FIRST_RUNS, PART_BYTES, PART_RUNS, SnapshotParts
from kvmarket.registry.space.space import Space
from tests.registry.space.test_space import SIZE, found, made, offer, record, tell


def parts_of(space: Space, without: tuple[str, ...] = ()) -> list[Snapshot]:
    parts, told = SnapshotParts([space], without), []
    while not parts.done:
        told += [change for change in parts.part() if isinstance(change, Snapshot)]
    return told


def put(space: Space, message: Snapshot, but: tuple[str, ...] = ()) -> bool:
    return any(list(put_branches(space, message, but)))


def test_a_space_made_from_what_is_told_answers_the_same():
    space = made("pa", "pb")
    offer(space, "pa", [1, 2, 3, 4, 5, 6], [7, 8, 9])
    offer(space, "pa", [1, 2, 3, 4, 7, 7], [17, 18, 19], first=0)
    offer(space, "pb", [1, 2, 3, 4], [1, 2])
    offer(space, "pb", [1, 2], [4], tenant="ünicode")
    copy = made("pa", "pb")
    assert tell(space, copy) == 1
    for tokens in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 7]):
        assert found(copy, tokens) == found(space, tokens)
        assert found(copy, tokens, without=("pb",)) == found(space, tokens, without=("pb",))
    assert found(copy, [1, 2], tenant="ünicode") == [("pb", 4, 1)]
    assert copy.blocks == space.blocks


def test_holes_are_told_too():
    space, copy = made("pa"), made("pa", "pb")
    offer(space, "pa", [1, 2, 3, 4, 5, 6], [9], first=2)
    tell(space, copy)
    assert found(copy, [1, 2, 3, 4, 5, 6]) == []
    offer(copy, "pb", [1, 2, 3, 4], [1, 2])
    assert found(copy, [1, 2, 3, 4, 5, 6]) == [("pb", 1, 1), ("pb", 2, 1), ("pa", 9, 1)]


def test_epochs_and_checksums():
    space, copy = made("pa"), made("pa")
    slots, sums = np.array([3, 4]), np.array([0, 77], np.uint64)
    for epoch, tokens in ((5, [1, 2, 3, 4]), (6, [8, 8, 9, 9])):
        place = 0, slots + 10 * epoch, epoch, np.full(2, 2**40, np.uint64), sums
        space.offer(Offering("pa", "", np.array(tokens, np.int32), *place))
    tell(space, copy)
    for tokens in ([1, 2, 3, 4], [8, 8, 9, 9]):
        mine, theirs = (each.match(np.array(tokens, np.int32), "", 0, ())[0] for each in (copy, space))
        assert (mine.epoch, mine.slots.tolist(), mine.generations.tolist()) == (
            theirs.epoch,
            theirs.slots.tolist(),
            theirs.generations.tolist(),
        )
        assert mine.checksums.tolist() == theirs.checksums.tolist() == [0, 77]


def test_some_pools_are_left_out_by_who_tells_and_by_who_hears():
    space = made("pa", "pb")
    offer(space, "pa", [1, 2], [7])
    offer(space, "pb", [1, 2, 3, 4], [1, 2])
    (message,) = parts_of(space, without=("pa",))
    copy = made("pa", "pb")
    assert put(copy, message)
    assert found(copy, [1, 2, 3, 4]) == [("pb", 1, 1), ("pb", 2, 1)]
    assert found(copy, [1, 2], without=("pb",)) == []
    (message,) = parts_of(space)
    copy = made("pa")
    assert put(copy, message)
    assert copy.blocks == 1, "a pool that is not known is passed over"
    assert not put(made("pa"), message, but=("pa",))


def test_what_stands_is_only_noted_and_what_is_older_than_that_passed_over():
    space, copy = made("pa"), made("pa")
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    (message,) = parts_of(space)
    assert put(copy, message)
    copy.pools["pa"].begin()
    clock = copy.trie._tree.clock
    assert not put(copy, message)
    assert copy.trie._tree.clock == clock
    assert copy.pools["pa"].unseen().tolist() == []
    offer(copy, "pa", [9, 9], [7], generation=2)
    assert not put(copy, message)
    assert found(copy, [9, 9]) == [("pa", 7, 2)]


def test_what_a_snapshot_does_not_tell_is_named_at_its_end():
    space = made("pa")
    pool = space.pools["pa"]
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    assert pool.unseen().tolist() == [], "no snapshot had begun"
    pool.begin()
    assert pool.telling
    offer(space, "pa", [1, 2], [7])
    offer(space, "pa", [5, 5], [9])
    assert pool.unseen().tolist() == [8]
    assert pool.told and not pool.telling


def test_many_branches_behind_a_long_prompt_are_told_in_linear_size():
    """Now and then the tokens above are told again, never so often that they are more than what hangs below them."""
    blocks, branches = 2000, 3000
    space = Space(SIZE)
    space.add_pool(record("pa", blocks + branches))
    space.add_pool(record("pb", blocks + branches))
    head = list(range(SIZE * blocks))
    offer(space, "pa", head, list(range(blocks)))
    for branch in range(branches):
        offer(space, "pa", [*head, -branch, -1], [blocks + branch], first=blocks)
    parts = parts_of(space)
    size = sum(len(pack_message(ChangesMessage(1, (part,)))) for part in parts)
    stands = (blocks + branches) * (4 * SIZE + 8 * 10)
    assert len(parts) > 4
    assert size < 3 * stands
    copy = Space(SIZE)
    copy.add_pool(record("pa", blocks + branches))
    tell(space, copy)
    assert copy.blocks == blocks + branches
    assert len(found(copy, [*head, -77, -1])) == blocks + 1
    copy.trie._check()


def test_the_first_part_is_a_short_one(run_bytes: int = 32):
    """Nothing that it touches is in a cache."""
    space = Space(SIZE)
    space.add_pool(record("p", 100_000))
    blocks = 100
    head, ones = np.arange(blocks * SIZE, dtype=np.int32), np.ones(blocks, np.uint64)
    space.offer(Offering("p", "", head, 0, np.arange(blocks), 1, ones, None))
    for branch in range(4 * PART_RUNS):
        tokens = np.concatenate([head, np.full(SIZE, -1 - branch, np.int32)])
        space.offer(Offering("p", "", tokens, blocks, np.array([blocks + branch]), 1, ones[:1], None))
    runs = [len(part.runs) // run_bytes for part in parts_of(space)]
    assert runs == [FIRST_RUNS, *[PART_RUNS] * 3, runs[-1]] and 0 < runs[-1] <= PART_RUNS


def test_branches_of_branches_are_told_in_linear_size_and_in_parts_that_are_bounded():
    """Whatever hangs below something that was told in the same part is told without what is above it."""
    stem, twigs, leaf = 600, 100, 20  # blocks, branches of two branches each, blocks of each of those
    space, slot = Space(SIZE), stem
    space.add_pool(record("pa", 1 << 15))
    space.add_pool(record("pb", 1))
    head = list(range(SIZE * stem))
    offer(space, "pa", head, list(range(stem)))
    for twig in range(twigs):
        for side in range(2):
            tokens = [*head, -twig, -1, *(-1000 - side - at for at in range(SIZE * leaf))]
            count = 1 + leaf if not side else leaf
            offer(space, "pa", tokens, list(range(slot, slot + count)), first=stem + 1 + leaf - count)
            slot += count
    parts = parts_of(space)
    sizes = [len(pack_message(ChangesMessage(1, (part,)))) for part in parts]
    assert max(sizes) < 1.1 * PART_BYTES
    assert len(parts) > 4 and sum(sizes) < 1.3 * slot * (4 * SIZE + 8 * 6)


def test_promises_come_before_the_end():
    space = made("pa", "pb")
    space.pools["pa"].told = True
    promise = Promise("pa", "", np.array([1, 2], np.int32).tobytes(), 3)
    space.promise(promise)
    space.promise(Promise("pb", "", np.array([1, 2], np.int32).tobytes(), 3))
    parts, told = SnapshotParts([space], ("pb",)), []
    while not parts.done:
        told += parts.part()
    assert told == [PoolJoined(space.pools["pa"].record), promise, SnapshotEnd(("pa",))]


def test_several_spaces_in_one_snapshot():
    one, other = made("pa"), made("pb")
    one.pools["pa"].told = other.pools["pb"].told = True
    offer(one, "pa", [1, 2], [7])
    offer(other, "pb", [1, 2], [8])
    parts, told = SnapshotParts([one, other]), []
    while not parts.done:
        told += parts.part()
    assert [type(each).__name__ for each in told] == ["PoolJoined", "PoolJoined", "Snapshot", "Snapshot", "SnapshotEnd"]
    assert told[-1] == SnapshotEnd(("pa", "pb"))


def good() -> Snapshot:
    space = made("pa")
    offer(space, "pa", [1, 2, 3, 4, 5, 6], [7, 8, 9])
    offer(space, "pa", [1, 2, 9, 9], [17, 18])
    (message,) = parts_of(space)
    return message


def rows(message: Snapshot, name: str, width: int, row: int, column: int, value: int) -> Snapshot:
    table = np.frombuffer(getattr(message, name), np.int64).reshape(-1, width).copy()
    table[row, column] = value
    return msgspec.structs.replace(message, **{name: table.tobytes()})


BAD = {
    "no runs": lambda m: msgspec.structs.replace(m, runs=b""),
    "half a run": lambda m: msgspec.structs.replace(m, runs=m.runs[:-8]),
    "half an offer": lambda m: msgspec.structs.replace(m, offers=m.offers[:-8]),
    "tokens missing": lambda m: msgspec.structs.replace(m, tokens=m.tokens[:-8]),
    "checksums missing": lambda m: msgspec.structs.replace(m, checksums=bytes(8)),
    "a tenant that is not there": lambda m: rows(m, "runs", 4, 0, 0, 1),
    "the first run shares something": lambda m: rows(m, "runs", 4, 0, 1, 1),
    "a run shares more than there is": lambda m: rows(m, "runs", 4, 1, 1, 99),
    "a run of no blocks": lambda m: rows(m, "runs", 4, 1, 2, 0),
    "fewer offers than said": lambda m: rows(m, "runs", 4, 0, 3, 9),
    "a block beyond its run": lambda m: rows(m, "offers", 5, 0, 0, 9),
    "a pool that is not there": lambda m: rows(m, "offers", 5, 0, 1, 1),
    "a slot beyond the pool": lambda m: rows(m, "offers", 5, 0, 2, 100),
    "a slot below zero": lambda m: rows(m, "offers", 5, 0, 2, -1),
    "a slot twice": lambda m: rows(m, "offers", 5, 0, 2, 8),
    "epoch zero": lambda m: rows(m, "offers", 5, 0, 3, 0),
    "generation zero": lambda m: rows(m, "offers", 5, 0, 4, 0),
}


@pytest.mark.parametrize("what", BAD)
def test_parts_that_do_not_fit_change_nothing(what):
    space = made("pa")
    offer(space, "pa", [8, 8], [1])
    with pytest.raises(MessageError):
        put(space, BAD[what](good()))
    assert space.blocks == 1
    assert put(space, good())


def test_another_tenant_begins_at_the_root():
    space = made("pa")
    offer(space, "pa", [1, 2, 3, 4], [7, 8])
    offer(space, "pa", [1, 2, 5, 5], [9, 10], tenant="t")
    (message,) = parts_of(space)
    with pytest.raises(MessageError):
        put(made("pa"), rows(message, "runs", 4, 1, 1, 1))


def test_random_spaces_told_whole():
    chance = random.Random(11)
    for turn in range(30):
        space, copy = made("pa", "pb"), made("pa", "pb")
        for generation in range(1, 40):
            tokens = [chance.randrange(2) for _ in range(SIZE * chance.randrange(1, 6))]
            slots = chance.sample(range(30), len(tokens) // SIZE)
            offer(space, chance.choice(["pa", "pb"]), tokens, slots, generation, tenant=chance.choice(["", "t"]))
            if chance.random() < 0.3:
                space.retire(chance.choice(["pa", "pb"]), np.array(chance.sample(range(30), 3)))
            if turn % 2 and generation in (10, 20):
                tell(space, copy)
        for name in ("pa", "pb"):
            copy.pools[name].begin()
        tell(space, copy)
        for name, pool in copy.pools.items():
            copy.retire(name, pool.unseen())
            assert pool.standing().tolist() == space.pools[name].standing().tolist()
            assert pool.generations.tolist() == space.pools[name].generations.tolist()
        copy.trie._check()
        for _ in range(20):
            query = [chance.randrange(2) for _ in range(12)]
            assert len(found(copy, query)) == len(found(space, query))
