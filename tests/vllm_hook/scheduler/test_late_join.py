"""What is under way when an engine joins the market late is not offered, and what comes later is, as it should be."""

from __future__ import annotations

import pytest

from kvmarket.errors import AddressError
from tests.vllm_hook.engines.late_market import NEW, LateMarket, times, until
from tests.vllm_hook.scheduler.fakes import admit, prefix, request, step_of
from vllm_hook.scheduler import rejoin


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoin, "RETRY_SECONDS", 0.01)


def test_requests_under_way_are_not_offered_and_those_that_go_on_from_their_blocks_are():
    market = LateMarket(AddressError("no service"))
    market.start()
    admit(market.side, one := request("a", 12), [1, 2, 3])
    first = market.side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 8)}))
    control = market.open()
    second = market.side.dispatch(step_of(cached={"a": (None, 8, 4)}))
    market.back(first.step)
    admit(market.side, request("b", 12), [1, 2, 4], local=8)
    third = market.side.dispatch(step_of(new={"b": ([1, 2, 4], 8, 4)}, cached={"a": ([5], 12, 1)}))
    market.back(second.step)
    assert control.live() == {}
    one.all_token_ids += [12]
    market.back(third.step)
    assert control.live() == {4: prefix(3)}, "with its whole prefix, of which the rest is not on offer"
    market.side.finished("a")
    admit(market.side, request("c", 8), [3, 5])
    market.back(market.side.dispatch(step_of(new={"c": ([3, 5], 0, 8)})).step)
    assert control.live() == {4: prefix(3), 3: prefix(1), 5: prefix(2)}


def test_a_request_that_was_preempted_before_is_offered_when_it_is_computed_again():
    market = LateMarket(AddressError("no service"))
    market.start()
    admit(market.side, one := request("a", 12), [1, 2, 3])
    flying = market.side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 12)}))
    control = market.open()
    admit(market.side, one, [4, 5, 6])
    resumed = market.side.dispatch(step_of(cached={"a": ([4, 5, 6], 0, 12)}, resumed={"a"}))
    market.back(flying.step)
    assert control.live() == {}, "a step from before the market was joined"
    market.back(resumed.step)
    assert control.live() == {4: prefix(1), 5: prefix(2), 6: prefix(3)}


def test_generations_are_those_of_the_market_that_was_joined():
    market = LateMarket(AddressError("no service"))
    market.start()
    admit(market.side, request("a", 8), [1, 2])
    market.side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    control = market.open()
    control.generation[3] = control.generation[4] = 77
    admit(market.side, request("b", 8), [3, 4])  # joined in the middle of a scheduling round
    step = market.side.dispatch(step_of(new={"b": ([3, 4], 0, 8)}))
    market.back(step.step)
    assert {slot: one[0] for slot, one in control.standing.items()} == {3: 78, 4: 78}, "retired, then offered"


def test_pages_that_the_pool_reported_before_cost_no_offer_of_later():
    market = LateMarket()
    market.start()
    admit(market.side, request("a", 8), [1, 2])
    market.back(market.side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step)
    market.back(market.side.dispatch(step_of()).step, NEW)
    market.pool.hand_out(1)
    market.pool.reset_prefix_cache()
    market.back(market.side.dispatch(step_of()).step, NEW)
    until(lambda: len(market.joined) == 2)
    admit(market.side, request("b", 8), [1, 2])
    market.back(market.side.dispatch(step_of(new={"b": ([1, 2], 0, 8)})).step, NEW)
    market.side.dispatch(step_of())
    assert set(market.joined[1].live()) == {1, 2}


def test_weights_that_change_before_it_has_joined():
    market, put_off, left = (
        LateMarket(AddressError("no service")),
        times("vllm_join_put_off"),
        times("vllm_left_market"),
    )
    market.start()
    first, second = (market.side.dispatch(step_of()).step for _ in range(2))
    untaken = market.open()
    market.back(first)
    market.back(second, NEW)
    until(lambda: untaken.closed)
    assert times("vllm_join_put_off") == put_off + 1 and times("vllm_left_market") == left
    market.back(market.side.dispatch(step_of()).step, NEW)
    assert market.side._control is None and len(market.made) == 1, "its cache may hold blocks of both"
    market.pool.reset_prefix_cache()
    market.back(market.side.dispatch(step_of()).step, NEW)
    until(lambda: len(market.joined) == 2)
    again = times("vllm_joined_again")
    market.side.dispatch(step_of())
    assert market.made[1][0] == NEW and market.side._control is market.made[1][1]
    assert times("vllm_joined_again") == again, "it comes for the first time"
