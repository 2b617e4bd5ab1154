"""Pools that are passed over: for good at once, for a while that grows with each failure, until they have gone."""

from __future__ import annotations

import pytest

from kvmarket.pool import avoided
from kvmarket.pool.avoided import AT_ONCE, FORGIVEN, LONGEST, SHORTEST, Avoided


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pools(clock: Clock) -> Avoided:
    return Avoided(clock)


def test_for_good_is_from_now_on_until_it_is_forgotten(pools, clock):
    pools.for_good("a")
    assert set(pools.now()) == {"a"}
    clock.now += 1e6
    pools.for_good("b")
    assert set(pools.now()) == {"a", "b"}
    pools.forget(["a", "unknown"])
    assert set(pools.now()) == {"b"}


def test_the_first_failures_cost_nothing_and_each_further_one_twice_as_long(pools, clock):
    for _ in range(AT_ONCE):
        pools.for_now("a")
        assert not pools.now(), "it may have been that moment"
    pause = SHORTEST
    for _ in range(12):
        pools.for_now("a")
        assert set(pools.now()) == {"a"}
        clock.now += min(pause, LONGEST) - 0.001
        assert set(pools.now()) == {"a"}
        clock.now += 0.001
        assert not pools.now(), "tried again"
        pause *= 2
    assert pause > LONGEST


def test_what_failed_long_ago_is_forgiven(pools, clock):
    for _ in range(AT_ONCE + 1):
        pools.for_now("a")
    clock.now += FORGIVEN
    pools.for_now("a")
    assert not pools.now()


def test_each_rests_for_itself(pools, clock):
    for _ in range(AT_ONCE + 1):
        pools.for_now("a")
    clock.now += SHORTEST / 2
    for _ in range(AT_ONCE + 1):
        pools.for_now("b")
    assert set(pools.now()) == {"a", "b"}
    clock.now += SHORTEST / 2
    assert set(pools.now()) == {"b"}
    pools.forget(["b"])
    assert not pools.now()
    pools.for_now("b")
    assert not pools.now(), "a pool of that name that comes again begins anew"


def test_the_clock_that_it_has_by_itself():
    pools = avoided.Avoided()
    for _ in range(AT_ONCE + 1):
        pools.for_now("a")
    assert set(pools.now()) == {"a"}
