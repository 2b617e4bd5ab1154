"""What blocks are worth, from how soon others of their class were used again."""

from __future__ import annotations

import random

import pytest

from kvmarket.lend.reuse import AGES, LEAST, ReuseTimes, _age, _start


def test_ages_are_intervals_without_gaps():
    for time in [*range(3000), 2**20 - 1, 2**20, 2**20 + 1]:
        age = _age(time)
        assert _start(age) <= time < _start(age + 1)
    assert _age(-1) == 0 and _age(1 << 40) == AGES - 1


def test_nothing_learned_means_least_recently_used_first():
    times = ReuseTimes(2)
    worths = [times.worth(1, time) for time in (0, 1, 2, 10, 1000, 1 << 21)]
    assert worths == sorted(worths, reverse=True) and len(set(worths)) == len(worths)


def learned(uses: list[int], never: int) -> ReuseTimes:
    times = ReuseTimes(1)
    for time in uses:
        times.begin(0)
        times.again(0, time)
    for _ in range(never):
        times.begin(0)
    times.learn()
    return times


def test_worth_is_the_best_ratio_of_uses_to_time_held():
    """Two thirds are used after two units of time (until the next age, three), the others never."""
    times = learned([2] * 60, never=30)
    until_use = 91 * 1 + 91 * 1 + (91 + 31) / 2  # ages 0, 1 and 2 are one unit long each
    assert times.worth(0, 0) == pytest.approx(60 / until_use)
    assert times.worth(0, 2) == pytest.approx(60 / 61)
    assert times.worth(0, 3) == 0.0, "who was not used by then is used never"


@pytest.mark.parametrize("seed", range(8))
def test_worth_is_the_best_of_all_times_until_which_to_hold(seed: int):
    chance = random.Random(seed)
    times, uses, began = ReuseTimes(3), [0] * AGES, chance.randrange(0, 60)
    for _ in range(chance.randrange(20, 60)):
        time = chance.randrange(1 << chance.randrange(1, 23))
        times.again(1, time)
        uses[_age(time)] += 1
    for _ in range(began):
        times.begin(1)
    times.learn()
    for age in range(AGES):
        best, used, held = 0.0, 0, 0.0
        waiting = max(began, sum(uses)) + 1 - sum(uses[:age])
        for later in range(age, AGES):
            used += uses[later]
            held += (waiting + max(waiting - uses[later], LEAST)) / 2 * (_start(later + 1) - _start(later))
            waiting -= uses[later]
            best = max(best, used / held)
        assert times.worth(1, _start(age)) == pytest.approx(best)


def test_worth_rises_towards_the_time_of_the_use_and_ends_after_it():
    times = learned([1000] * 50, never=50)
    assert times.worth(0, 10) < times.worth(0, 500) < times.worth(0, 900)
    assert times.worth(0, 2000) == 0.0


def test_a_class_of_which_more_was_used_than_began_has_no_infinite_worth():
    """Its blocks began before what is remembered."""
    times = ReuseTimes(1)
    for _ in range(40):
        times.again(0, 0)
    times.learn()
    assert times.worth(0, 0) == pytest.approx(40 / ((41 + 1) / 2))
    last = ReuseTimes(1)
    for _ in range(40):
        last.again(0, 1 << 30)
    last.learn()
    assert 0 < last.worth(0, 1 << 30) < 1e-4, "in the last age, which is the longest"


def test_what_was_learned_long_ago_weighs_less():
    times = learned([2] * 50, never=0)
    for _ in range(200):
        times.learn()
    for _ in range(50):
        times.begin(0)
        times.again(0, 1000)
    times.learn()
    new = learned([1000] * 50, never=0)
    assert [times.worth(0, time) for time in (0, 2, 900)] == pytest.approx(
        [new.worth(0, time) for time in (0, 2, 900)], rel=0.01
    )
