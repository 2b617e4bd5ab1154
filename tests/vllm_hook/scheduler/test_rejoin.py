"""An engine whose weights change: first out of the market, then back when its cache holds nothing of the old ones."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from kvmarket import counters
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl, FakePool, admit, back, request, step_of
from vllm_hook.metadata import RankMemory, StepDone
from vllm_hook.scheduler.rejoin import Rejoin
from vllm_hook.scheduler.side import SchedulerSide

NEW, NEWER, HIDDEN = ((0, "new"),), ((0, "newer"),), ((0, "?1"),)


def count(name: str) -> int:
    return sum(times for key, times in counters.snapshot().items() if key.split("{")[0] == name)


class Market:
    """A scheduler side with a market that it can join again and again."""

    def __init__(self, ranks: int = 1) -> None:
        self.pool = FakePool()
        self.joined: list[tuple[Any, FakeControl]] = []
        self.side = SchedulerSide(BLOCK, ranks)
        self.side.bind_pool(self.pool)
        memories = {rank: RankMemory(None, None) for rank in range(ranks)}
        assert self.side.join(memories, self.connect) == ""  # type: ignore[arg-type]
        self.ranks = ranks

    def connect(self, memories: Any) -> FakeControl:
        self.joined.append((memories[0].weights, FakeControl()))
        return self.joined[-1][1]

    def dispatch(self, name: str, pages: list[int]) -> int:
        admit(self.side, request(name, 8), pages)
        return self.side.dispatch(step_of(new={name: (pages, 0, 8)})).step

    def back(self, step: int, weights: Any) -> None:
        output = back(step, ranks=self.ranks)
        output.kv_connector_worker_meta = StepDone(step, self.ranks, weights=weights)
        self.side.returned(output)

    def settle(self, expected: int) -> None:
        """Wait until the market was joined so often and steps have been dispatched since."""
        end = time.monotonic() + 5
        while len(self.joined) < expected and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(self.joined) == expected
        self.side.dispatch(step_of())

    def live(self) -> set[int]:
        return set().union(*(control.live() for _, control in self.joined))


def test_steps_in_flight_when_weights_change_offer_nothing():
    market = Market()
    market.back(market.dispatch("a", [1, 2]), ())
    assert market.live() == {1, 2}
    first, second, third = (market.dispatch(name, pages) for name, pages in [("b", [3]), ("c", [4]), ("d", [5])])
    market.back(first, NEW)
    assert "fail_closed" in market.joined[0][1].log, "offers of the old weights stand until the market has been left"
    assert market.live() == set() and len(market.side._steps) == 0
    market.back(second, NEW)
    market.back(third, NEW)
    market.settle(1)
    market.back(market.dispatch("e", [6, 7]), NEW)
    assert market.live() == set(), "the prefix cache was not emptied: hits may rest on the old weights"


def test_engine_comes_back_with_other_weights_when_its_cache_is_reset():
    market, left, again = Market(), count("vllm_left_market"), count("vllm_joined_again")
    market.back(market.dispatch("a", [1, 2]), ())
    market.back(market.dispatch("b", [3, 4]), NEW)
    market.pool.reset_prefix_cache()
    market.settle(1)
    market.back(market.dispatch("c", [1, 2]), NEW)
    market.settle(2)
    (_, old), (weights, _) = market.joined
    assert weights == NEW and old.closed
    assert count("vllm_left_market") == left + 1 and count("vllm_joined_again") == again + 1
    assert market.side.match(request("x", 12), 0) == (0, False)
    step = market.side.dispatch(step_of())
    assert step.weights == NEW
    market.back(market.dispatch("d", [5, 6]), NEW)
    market.side.dispatch(step_of())
    assert market.live() == {5, 6}
    market.back(market.dispatch("e", [1, 2]), ())
    assert market.live() == set(), "back to the weights of the start: the cache has blocks of both"


def test_cache_reset_before_the_first_step_with_other_weights():
    market = Market()
    market.back(market.dispatch("a", [1, 2]), ())
    market.pool.reset_prefix_cache()
    market.back(market.dispatch("b", [3, 4]), NEW)
    market.settle(2)
    market.back(market.dispatch("c", [5, 6]), NEW)
    market.side.dispatch(step_of())
    assert market.live() == {5, 6}


def test_weights_that_change_again_while_the_market_is_joined():
    market = Market()
    market.back(market.dispatch("a", [1, 2]), NEW)
    market.pool.reset_prefix_cache()
    market.back(market.dispatch("b", [3, 4]), NEW)
    market.back(market.dispatch("c", [3, 4]), NEWER)
    market.settle(2)
    assert market.joined[1][1].closed and market.side.match(request("x", 12), 0) == (0, False)
    market.pool.reset_prefix_cache()
    market.back(market.dispatch("d", [5, 6]), NEWER)
    market.settle(3)
    assert market.joined[2][0] == NEWER and not market.joined[2][1].closed


def test_hidden_weights_keep_the_engine_out():
    market, off = Market(), count("vllm_hook_off")
    market.pool.reset_prefix_cache()
    market.back(market.dispatch("a", [1, 2]), HIDDEN)
    market.back(market.dispatch("b", [1, 2]), HIDDEN)
    market.settle(1)
    assert market.joined[0][1].closed and market.live() == set() and count("vllm_hook_off") == off + 1
    market.pool.reset_prefix_cache()
    market.back(market.dispatch("c", [1, 2]), ())
    market.settle(2)
    assert market.joined[1][0] == (), "back to what it started with"


def test_ranks_change_their_weights_together():
    market = Market(ranks=2)
    market.pool.reset_prefix_cache()
    step = market.dispatch("a", [1, 2])
    output = back(step)
    output.kv_connector_worker_meta = StepDone(step, 1, weights=NEW)
    market.side.returned(output)
    assert not market.joined[0][1].closed, "one rank does not speak for all"
    market.back(step, (*NEW, (1, "x")))
    market.settle(2)
    assert market.joined[1][0] == (*NEW, (1, "x"))


def test_market_that_cannot_be_joined_again_leaves_the_engine_off():
    market = Market()
    market.pool.reset_prefix_cache()
    market.side._rejoin._connect = lambda _: 1 / 0  # type: ignore[union-attr]
    market.back(market.dispatch("a", [1, 2]), NEW)
    market.settle(1)
    market.back(market.dispatch("b", [1, 2]), NEW)
    assert market.live() == set() and market.side.match(request("x", 12), 0) == (0, False)
    market.side.close()


def test_market_that_could_not_be_joined_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vllm_hook.scheduler.rejoin.RETRY_SECONDS", 0.2)
    market, tries = Market(), []

    def connect(memories: Any) -> FakeControl:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise OSError("the service is busy")
        return market.connect(memories)

    market.pool.reset_prefix_cache()
    market.side._rejoin._connect = connect  # type: ignore[union-attr, assignment]
    end = time.monotonic() + 5
    while len(market.joined) < 2 and time.monotonic() < end:
        market.back(market.dispatch("a", [1, 2]), NEW)
        time.sleep(0.01)
    assert len(tries) == 2 and tries[1] - tries[0] >= 0.2, "with a pause between"
    market.settle(2)
    market.back(market.dispatch("b", [3, 4]), NEW)
    market.side.dispatch(step_of())
    assert {3, 4} <= market.live()


def test_joining_that_another_change_overtakes():
    gate, made = threading.Event(), []

    def connect(ranks: Any) -> Any:
        assert gate.wait(5)
        made.append(FakeControl())
        return made[-1]

    rejoin = Rejoin([RankMemory(None, None)], connect)
    for step, weights in ((1, NEW), (2, NEWER)):
        assert rejoin.changed(step, weights)
        rejoin.leave(None, step, weights)
    gate.set()
    end = time.monotonic() + 5
    while not (made and made[0].closed) and time.monotonic() < end:
        time.sleep(0.001)
    assert made[0].closed and rejoin.take() is None, "in the market under weights that it has no more"


def test_who_is_closed_joins_no_more():
    asked: list[Any] = []
    rejoin = Rejoin([RankMemory(None, None)], asked.append)  # type: ignore[arg-type]
    rejoin.leave(None, 1, NEW)
    rejoin.close()
    before = len(asked)
    rejoin.leave(None, 2, NEWER)
    rejoin.emptied(3)
    assert not rejoin.changed(3, NEWER)
    time.sleep(0.05)
    assert len(asked) == before and rejoin._joining is None


def test_what_was_mapped_in_a_market_that_is_left_is_forgotten():
    """Who has left hears no more of the end of those whose memory is mapped."""
    market = Market()
    market.back(market.dispatch("a", [1, 2]), NEW)
    steps = [market.side.dispatch(step_of()) for _ in range(2)]
    assert [step.gone for step in steps] == [("a peer's",), ()]
