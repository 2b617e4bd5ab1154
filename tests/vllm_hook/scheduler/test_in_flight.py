"""Requests wait for what another engine is computing, no longer than that pays, and never for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvmarket import counters
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl, admit, back, joined, request, step_of
from vllm_hook.scheduler import in_flight
from vllm_hook.scheduler.side import SchedulerSide


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(in_flight.time, "monotonic", lambda: now[0])
    return now


BLOCK_SECONDS = 10.0  # what this engine takes to compute one


def waiting(tokens: int = 2 * BLOCK, **more: Any) -> tuple[SchedulerSide, FakeControl]:
    side, control = joined(wait_tokens=tokens, **more)
    side._in_flight._seconds = lambda tokens: tokens / BLOCK * BLOCK_SECONDS
    return side, control


def given_up(reason: str) -> int:
    return counters.snapshot().get(f"vllm_wait_given_up{{{reason}}}", 0)


def test_a_request_waits_until_the_prompt_is_on_offer(clock):
    side, control = waiting()
    one, before = request("a", 4 * BLOCK + 1), counters.snapshot().get("vllm_requests_waited", 0)
    control.coming = 4
    assert side.match(one, 0) == (None, False)
    assert counters.snapshot()["vllm_requests_waited"] == before + 1
    control.found = 2
    assert side.match(one, 0) == (None, False)
    control.found, control.coming = 4, 0
    assert side.match(one, 0) == (4 * BLOCK, True)


def test_nobody_waits_for_less_than_would_be_imported(clock):
    side, control = waiting(BLOCK, min_tokens=3 * BLOCK)
    control.coming = 2
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (0, False)
    control.coming = 3
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (None, False)


@pytest.mark.parametrize(("coming", "found", "local"), [(1, 0, 0), (4, 3, 0), (4, 0, 3), (0, 0, 0)])
def test_too_little_is_computed_at_once(clock, coming, found, local):
    side, control = waiting()
    control.coming, control.found = coming, found
    external, _ = side.match(request("a", 4 * BLOCK + 1), local * BLOCK)
    assert external is not None


def test_nobody_waits_where_it_is_switched_off(clock):
    side, control = waiting(0)
    control.coming = 4
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (0, False)
    side.allocated(request("a", 4 * BLOCK + 1), [1, 2, 3, 4, 5], 0)
    assert control.promises == {}


def test_nobody_waits_where_it_is_switched_off_though_imports_have_a_minimum(clock):
    side, control = waiting(0, min_tokens=2 * BLOCK)
    control.coming = 4
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (0, False)


def test_who_offers_nothing_more_is_not_waited_for(clock):
    (side, control), before = waiting(), given_up(in_flight.STALLED)
    one = request("a", 4 * BLOCK + 1)
    control.coming = 4
    for found in (0, 1, 1, 2):
        clock[0] += in_flight.STALLED_SECONDS * 0.6
        control.found = found
        assert side.match(one, 0) == (None, False)
    clock[0] += in_flight.STALLED_SECONDS * 1.1
    assert side.match(one, 0) == (2 * BLOCK, True), "what is there is taken"
    assert side.match(one, 0) == (2 * BLOCK, True), "and it does not wait again"
    assert given_up(in_flight.STALLED) == before + 1


def test_an_engine_that_has_not_measured_does_not_wait_for_half_an_hour_either(clock):
    wait, tokens, control, offered = (
        in_flight.InFlightPrefills(16, 1024),
        np.zeros(2048 * 16, np.int32),
        FakeControl(),
        0,
    )
    control.coming = 2048
    while wait.worth(control, "a", tokens, "", offered):  # type: ignore[arg-type]
        clock[0] += 0.9
        offered += 1
    assert clock[0] - 100.0 < 2


def offering(clock: list[float], pace: float, blocks: int, tokens_a_second: float) -> tuple[float, int, str]:
    """Wait for a peer that offers a block every `pace` seconds: how long, the blocks on offer then, and why no more."""
    before = counters.snapshot()
    wait = in_flight.InFlightPrefills(16, 1024, lambda tokens: tokens / tokens_a_second)
    control, begun, offered = FakeControl(), clock[0], 0
    control.coming = blocks
    while wait.worth(control, "a", np.zeros(blocks * 16, np.int32), "", offered):  # type: ignore[arg-type]
        clock[0] += pace
        offered += 1
        assert clock[0] - begun < 3600
    (reason,) = [key for key, n in counters.snapshot().items() if "given_up" in key and n != before.get(key)] or [""]
    return clock[0] - begun, offered, reason


def test_a_slow_peer_is_left_as_soon_as_its_pace_shows(clock):
    seconds, offered, reason = offering(clock, 0.9, 2048, 27_000.0)
    assert (seconds, offered) == (pytest.approx(0.9), 1) and in_flight.TOO_SLOW in reason
    seconds, offered, reason = offering(clock, 0.9, 2048, 100.0)  # this engine takes 328 s, the peer 1843
    assert seconds == pytest.approx(0.9) and in_flight.TOO_SLOW in reason


def test_a_pace_is_that_of_the_blocks_that_came_meanwhile(clock):
    (side, control), one = waiting(), request("a", 40 * BLOCK + 1)
    side._in_flight._seconds = lambda tokens: tokens / BLOCK * 0.5  # 10 s for the 20 blocks that are awaited
    control.found, control.coming = 10, 30
    assert side.match(one, 0) == (None, False)
    clock[0] += 0.9
    control.found += 2
    assert side.match(one, 0) == (None, False), "9 s for all of them"
    clock[0] += 0.9
    control.found += 1
    assert side.match(one, 0) == (13 * BLOCK, True), "12 s: the ten that were there say nothing"


def test_a_peer_that_is_as_fast_is_waited_for_until_the_rest_is_not_worth_it(clock):
    pace = 16 / 27_000.0
    seconds, offered, reason = offering(clock, pace, 2048, 27_000.0)
    assert offered == 2048 - 1024 // 16 + 1 and reason == ""
    assert seconds <= 2048 * pace


def test_no_wait_is_longer_than_computing_takes_here(clock):
    (side, control), one, before = waiting(), request("a", 4 * BLOCK + 1), given_up(in_flight.TOO_LONG)
    side._in_flight._seconds = lambda tokens: tokens / BLOCK * 0.1
    control.coming = 3  # the fourth block is computed here in any case
    assert side.match(one, 0) == (None, False)
    clock[0] += 0.3
    assert side.match(one, 0) == (None, False)
    clock[0] += in_flight.OFFER_SECONDS + 1e-6
    assert side.match(one, 0) == (0, False)
    assert given_up(in_flight.TOO_LONG) == before + 1


def test_a_peer_that_promises_more_and_more_is_not_waited_for_longer(clock):
    (side, control), one, begun = waiting(), request("a", 40 * BLOCK + 1), clock[0]
    side._in_flight._seconds = lambda tokens: tokens / BLOCK * 0.5
    control.coming = 4
    while side.match(one, 0) == (None, False):
        clock[0] += 0.25
        control.found += clock[0] % 0.5 == 0  # as fast as this engine
        control.coming = control.found + 4
    assert clock[0] - begun == 2.25, "the four blocks of its first promise, and a look"


def test_a_request_that_has_the_name_of_one_that_waited_waits_as_long_as_any(clock):
    (side, control), one = waiting(), request("a", 4 * BLOCK + 1)
    side._in_flight._seconds = lambda tokens: tokens / BLOCK * 0.1
    control.coming = 4
    assert side.match(one, 0) == (None, False)
    side.finished("a")
    clock[0] += 60
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (None, False)


def test_a_reset_does_not_begin_the_wait_anew(clock):
    side, control = waiting()
    control.coming = 4
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (None, False)
    side.fail("test")
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (0, False)
    side.finished("a")
    assert side.match(request("a", 4 * BLOCK + 1), 0) == (None, False), "another request of that name"


def test_a_prompt_is_promised_until_all_of_it_is_on_offer():
    side, control = waiting()
    one = request("a", 3 * BLOCK + 1)
    admit(side, one, [1, 2, 3, 4])
    assert list(control.promises.values()) == [(tuple(range(3 * BLOCK)), side_tenant(side))]
    first = side.dispatch(step_of(new={"a": ([1, 2], 0, 2 * BLOCK)}))
    second = side.dispatch(step_of(cached={"a": ([3, 4], 2 * BLOCK, BLOCK + 1)}))
    side.returned(back(first.step))
    assert control.promises
    side.returned(back(second.step))
    assert control.promises == {}
    assert control.log[-2:] == ["offer", "settle"], "who waits must find the offers when the promise is gone"


def test_what_is_promised_is_promised_once():
    side, control = waiting(imports=False)
    one = request("a", 3 * BLOCK)
    admit(side, one, [1, 2, 3])
    admit(side, one, [4, 5, 6])  # preempted meanwhile; the market is not asked
    assert control.log.count("promise") == 1


def test_what_is_left_behind_an_import_is_promised():
    side, control = waiting()
    control.found = 2
    assert admit(side, request("a", 4 * BLOCK), [1, 2]) == 2 * BLOCK
    assert [len(tokens) for tokens, _ in control.promises.values()] == [4 * BLOCK]


def test_a_prompt_of_just_enough_is_promised():
    side, control = waiting(3 * BLOCK)
    admit(side, request("a", 3 * BLOCK), [1, 2, 3])
    admit(side, request("b", 3 * BLOCK - 1), [4, 5, 6])
    assert len(control.promises) == 1


def side_tenant(side: SchedulerSide) -> str:
    return next(iter(side._states.values())).tenant


def test_the_last_blocks_of_a_finished_request_are_offered_before_its_promise_goes():
    side, control = waiting()
    admit(side, request("a", 3 * BLOCK), [1, 2, 3])
    step = side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 3 * BLOCK)}))
    side.finished("a")
    assert control.promises
    side.returned(back(step.step))
    assert control.promises == {}
    assert control.log[-2:] == ["offer", "settle"]


def test_the_last_request_aborted_between_two_steps_keeps_no_promise():
    side, control = waiting()
    admit(side, request("a", 3 * BLOCK), [1, 2, 3])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 0, BLOCK)})).step))
    assert control.promises
    side.finished("a")  # an engine in its caller's process steps no further
    assert control.promises == {} and set(control.live()) == {1}


def test_what_an_aborted_or_preempted_request_promised_is_taken_back(clock):
    side, control = waiting()
    admit(side, request("a", 3 * BLOCK), [1, 2, 3])
    admit(side, one := request("b", 3 * BLOCK), [4, 5, 6])
    assert len(control.promises) == 2
    side.finished("a")
    side.returned(back(side.dispatch(step_of()).step))
    assert len(control.promises) == 1
    side.match(one, 0)  # preempted, and asked about again
    assert control.promises == {}


def test_nothing_is_promised_that_is_at_hand_or_not_offered():
    side, control = waiting()
    admit(side, request("a", 3 * BLOCK), [1, 2, 3], local=2 * BLOCK)
    control.found = 2
    admit(side, request("b", 3 * BLOCK), [4, 5, 6])
    admit(side, request("c", 3 * BLOCK, mm_features=["picture"]), [7, 8, 9])
    assert control.promises == {}
    side, control = joined(wait_tokens=BLOCK, offers=False)
    admit(side, request("a", 3 * BLOCK), [1, 2, 3])
    assert control.promises == {}


def test_promises_go_with_the_offers(clock):
    side, control = waiting()
    admit(side, request("a", 3 * BLOCK), [1, 2, 3])
    side.invalidate("reset")
    control.log.clear()
    side.finished("a")
    side.returned(back(side.dispatch(step_of()).step))
    assert "settle" not in control.log


def test_two_engines_that_have_begun_never_wait_for_each_other(clock):
    engines = [waiting(), waiting()]
    requests = [request("a", 3 * BLOCK + 1) for _ in engines]
    for (side, _), one in zip(engines, requests, strict=True):
        admit(side, one, [1, 2, 3, 4])
    for (side, control), (_, other) in zip(engines, reversed(engines), strict=True):
        assert len(other.promises) == 1
        control.coming = 3
        side.dispatch(step_of(new={"a": ([1, 2, 3, 4], 0, 3 * BLOCK)}))
        assert not side._in_flight._waiting
    (side, control), one = engines[0], requests[0]
    control.log.clear()
    assert side.match(one, 0) == (None, False), "preempted: the other one has begun"
    assert control.promises == {} and control.log.index("settle") >= 0, "and nobody waits for this one"
