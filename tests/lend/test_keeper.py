"""Which blocks a lender keeps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmarket.errors import MisuseError
from kvmarket.lend import keeper
from kvmarket.lend.keeper import ALONE, BEHIND, USED_FEW, USED_OFTEN, USED_ONCE, USED_SOME, Keeper
from kvmarket.lend.reuse import ReuseTimes

Block = tuple[int, ...]  # a block's key: the numbers on the path to it


def path(*numbers: int) -> list[Block]:
    return [numbers[: end + 1] for end in range(len(numbers))]


def found(kept: Keeper[Block], blocks: list[Block]) -> int:
    return next((i for i, block in enumerate(blocks) if block not in kept), len(blocks))


def test_everything_is_kept_while_there_is_room():
    kept: Keeper[Block] = Keeper(10)
    assert kept.used(path(1, 2, 3)) == (path(1, 2, 3), [])
    assert kept.used(path(1, 2, 4)) == ([(1, 2, 4)], [])
    assert kept.used(path(1, 2, 3)) == ([], [])
    assert len(kept) == 4 and (1, 2, 4) in kept and (1, 4) not in kept


def test_of_a_prompt_larger_than_the_memory_the_first_blocks_are_kept():
    kept: Keeper[Block] = Keeper(3)
    change = kept.used(path(1, 2, 3, 4, 5))
    assert change == (path(1, 2, 3), [])


@pytest.mark.parametrize("capacity", [0, -1, 1.5, "8"])
def test_capacity_is_a_number_from_one_on(capacity):
    with pytest.raises(MisuseError, match="capacity="):
        Keeper(capacity)


paths = st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=6), max_size=60)


@settings(max_examples=60, deadline=None)
@given(prompts=paths, capacity=st.integers(1, 12))
def test_kept_blocks_are_within_the_memory_and_none_is_without_those_before_it(prompts, capacity):
    kept: Keeper[Block] = Keeper(capacity)
    model: set[Block] = set()
    for prompt in prompts:
        blocks = path(*prompt)
        take, drop = kept.used(blocks)
        assert model.issuperset(drop) and model.isdisjoint(take) and not set(drop) & set(blocks)
        model = (model - set(drop)) | set(take)
        assert take == [block for block in blocks if block in take], "in their order"
        assert len(model) == len(kept) <= capacity
        assert all(block in kept for block in model)
        assert all(len(block) == 1 or block[:-1] in model for block in model)
        assert len(set(kept._leaves)) == len(kept._leaves) and len(kept._behind) == len(model)
        assert set(kept._leaves) == {block for block in model if not any(each[:-1] == block for each in model)}


def flood(kept: Keeper[Block], rounds: int, seed: int = 3) -> float:
    """Ten prompts again and again, each after 50 that never come again; the share of the ten that was found."""
    chance, hits, asked = random.Random(seed), 0, 0
    for turn in range(rounds):
        blocks = path(turn % 10, 1, 2, 3)
        hits += found(kept, blocks)
        asked += len(blocks)
        kept.used(blocks)
        for _ in range(50):
            kept.used(path(100 + chance.randrange(1 << 40), 1, 2, 3))
    return hits / asked


def test_prompts_that_come_again_outlive_a_flood_of_others():
    """Between two uses of one of them 2,000 other blocks are asked for, and 80 fit: least recently used finds none."""
    kept: Keeper[Block] = Keeper(80)
    flood(kept, 60)
    assert flood(kept, 60, seed=4) > 0.9


def test_what_is_worth_less_than_all_that_is_kept_is_not_taken():
    """The ten prompts fill the memory: no other one is taken in the place of a block of theirs."""
    kept: Keeper[Block] = Keeper(40)
    flood(kept, 100)
    assert flood(kept, 60, seed=4) > 0.95


def test_behind_a_block_that_is_not_taken_none_is(monkeypatch):
    kept: Keeper[Block] = Keeper(2)
    kept.used(path(1))
    kept.used(path(2))
    least, answers = kept._least, [None]
    monkeypatch.setattr(kept, "_least", lambda held: answers.pop() if answers else least(held))
    assert kept.used(path(3, 4)) == ([], [])
    assert kept.used(path(3))[0] == path(3), "later it may be"


def test_it_learns_anew_when_the_load_changes():
    kept: Keeper[Block] = Keeper(80)
    flood(kept, 60)
    hits = 0
    for turn in range(3000):  # now every prompt comes twice, soon after each other
        blocks = path(1000 + turn // 2, 7, 7)
        hits += found(kept, blocks) if turn > 1500 else 0
        kept.used(blocks)
    assert hits > 0.9 * 3 * 750


def test_equal_seeds_decide_equally():
    decisions = []
    for _ in range(2):
        kept: Keeper[Block] = Keeper(20, seed=5)
        decisions.append([kept.used(path(number % 37, number % 5, 1)) for number in range(500)])
    assert decisions[0] == decisions[1]


def test_classes_follow_from_how_often_a_block_was_used():
    kept: Keeper[Block] = Keeper(4)
    assert kept._note([]) == []
    kinds = [kept._note(path(1)) for _ in range(20)]
    assert kinds == [[ALONE], [USED_ONCE], *[[USED_FEW]] * 2, *[[USED_SOME]] * 12, *[[USED_OFTEN]] * 4]
    assert kept._note(path(1, 2, 3)) == [USED_OFTEN, BEHIND, BEHIND], "behind a block that was used before"
    assert kept._note(path(2, 2)) == [ALONE, ALONE]
    assert kept._note(path(1, 2, 4)) == [USED_OFTEN, USED_ONCE, BEHIND]


def test_uses_are_noted_with_the_class_and_the_time_since_the_last_one(monkeypatch):
    noted: list[tuple[str, int, int]] = []
    monkeypatch.setattr(ReuseTimes, "begin", lambda self, kind: noted.append(("begin", kind, 0)))
    monkeypatch.setattr(ReuseTimes, "again", lambda self, kind, time: noted.append(("again", kind, time)))
    kept: Keeper[Block] = Keeper(4)
    for blocks in (path(1), path(2, 3), path(1)):
        kept.used(blocks)
    begins = [("begin", ALONE, 0)] * 3
    assert noted == [*begins, ("again", ALONE, 3), ("begin", USED_ONCE, 0)]


@pytest.mark.parametrize(("capacity", "learned"), [(10, 4), (8 * 512, 4), (8 * 1000, 2), (8 * 5000, 1)])
def test_it_learns_once_for_a_part_of_the_memory_that_was_asked_for(capacity: int, learned: int, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(ReuseTimes, "learn", lambda self: calls.append(1))
    kept: Keeper[Block] = Keeper(capacity)
    for number in range(2000):
        kept.used(path(number))
    assert len(calls) == learned


@pytest.mark.parametrize(("fewest", "remembered"), [(50, 50), (1, 8 * 5)])
def test_what_is_remembered_is_bounded(fewest: int, remembered: int, monkeypatch):
    monkeypatch.setattr(keeper, "FEWEST_KNOWN", fewest)
    kept: Keeper[Block] = Keeper(5)
    for number in range(1000):
        kept.used(path(number))
    assert list(kept._past) == [(number,) for number in range(1000 - remembered, 1000)], "the last ones"
    assert kept._worth((0,)) == 0.0, "of a block that is not remembered"


def test_blocks_that_could_not_be_had_are_not_kept_unless_others_go_on_from_them():
    kept: Keeper[Block] = Keeper(10)
    kept.used(path(1, 2, 3, 4))
    kept.used(path(1, 2, 9))
    kept.lost(path(1, 2, 3, 4)[1:])
    assert [block in kept for block in (*path(1, 2, 3, 4), (1, 2, 9))] == [True, True, False, False, True]
    kept.lost([(1, 2, 9)])
    kept.lost([(1, 2), (5, 5)])
    assert len(kept) == 1
    assert kept.used(path(1, 2))[0] == [(1, 2)]


def test_what_does_not_fit_into_a_smaller_memory_is_given_up_from_the_leaves():
    kept: Keeper[Block] = Keeper(6)
    kept.used(path(1, 2, 3))
    kept.used(path(4, 5, 6))
    for _ in range(3):
        kept.used(path(4, 5, 6))
    drop = kept.resize(4)
    assert len(drop) == 2 and len(kept) == 4 and set(drop) <= {*path(1, 2, 3), *path(4, 5, 6)}
    assert all(block[:-1] in kept for block in (*path(1, 2, 3), *path(4, 5, 6)) if block in kept and len(block) > 1)
    assert kept.resize(5) == [] and kept.capacity == 5
    with pytest.raises(MisuseError, match="capacity="):
        kept.resize(0)


def test_a_request_that_goes_on_is_noted_where_it_goes_on():
    kept: Keeper[Block] = Keeper(3)
    kept.used(path(1, 2))
    assert kept.used([(1, 2, 3)], after=(1, 2)) == ([(1, 2, 3)], [])
    assert [kept._past[block].uses for block in path(1, 2, 3)] == [1, 1, 1]
    assert kept._past[(1, 2, 3)].kind == ALONE, "as the blocks before it, though its prompt has come before"
    assert kept.used([(1, 2, 3, 4)], after=(1, 2, 3)) == ([], []), "the only leaf is the block that it goes on from"
    assert kept.used([(7, 8)], after=(7,)) == ([], []), "the block before is not kept"
    kept.used(path(1, 2))
    kept.used([(1, 2, 5)], after=(1, 2))
    assert kept._past[(1, 2, 5)].kind == BEHIND


def test_pinned_blocks_are_not_given_up():
    kept: Keeper[Block] = Keeper(2)
    kept.used(path(1, 2))
    kept.pinned.add((1, 2))
    assert kept.used(path(3)) == ([], [])
    assert kept.resize(1) == [] and len(kept) == 2
    kept.pinned.clear()
    assert kept.used(path(3)) == (path(3), [(1, 2)])


def test_of_much_memory_not_much_more_is_remembered_than_it_holds(monkeypatch):
    for name, value in (("FEWEST_KNOWN", 4), ("MOST_KNOWN", 20)):
        monkeypatch.setattr(keeper, name, value)
    for capacity, known in ((2, 16), (4, 20), (30, 30)):
        kept: Keeper[Block] = Keeper(capacity)
        for number in range(100):
            kept.used(path(number))
        assert len(kept._past) == known
