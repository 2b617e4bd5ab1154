"""Which blocks a lender keeps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmarket.errors import MisuseError
from kvmarket.lend import keeper
from kvmarket.lend.keeper import Keeper

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
        assert len(set(kept._leaves)) == len(kept._leaves)
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


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(keeper, "FEWEST_KNOWN", 50)
    kept: Keeper[Block] = Keeper(5)
    for number in range(1000):
        kept.used(path(number))
    assert len(kept._past) <= 50
    assert kept._worth((-1,)) == 0.0, "of a block that is not remembered"
