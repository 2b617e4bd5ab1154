"""Requests wait for what another engine is computing, no longer than that pays, and never for each other."""

from __future__ import annotations

import pytest

from tests.vllm_hook.fakes import BLOCK, FakeControl, admit, back, joined, request, step_of
from vllm_hook import waits
from vllm_hook.scheduler import SchedulerSide


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(waits.time, "monotonic", lambda: now[0])
    return now


def waiting(tokens: int = 2 * BLOCK) -> tuple[SchedulerSide, FakeControl]:
    return joined(wait_tokens=tokens)


def test_a_request_waits_until_the_prompt_is_on_offer(clock):
    side, control = waiting()
    one = request("a", 4 * BLOCK + 1)
    control.coming = 4
    assert side.match(one, 0) == (None, False)
    control.found = 2
    assert side.match(one, 0) == (None, False)
    control.found, control.coming = 4, 0
    assert side.match(one, 0) == (4 * BLOCK, True)


def test_nobody_waits_for_less_than_would_be_imported(clock):
    side, control = joined(wait_tokens=BLOCK, min_tokens=3 * BLOCK)
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


def test_who_offers_nothing_more_is_not_waited_for(clock):
    side, control = waiting()
    one = request("a", 4 * BLOCK + 1)
    control.coming = 4
    for found in (0, 1, 1, 2):
        clock[0] += waits.STALLED_SECONDS * 0.6
        control.found = found
        assert side.match(one, 0) == (None, False)
    clock[0] += waits.STALLED_SECONDS * 1.1
    assert side.match(one, 0) == (2 * BLOCK, True), "what is there is taken"
    assert side.match(one, 0) == (2 * BLOCK, True), "and it does not wait again"


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


def side_tenant(side: SchedulerSide) -> str:
    return next(iter(side._tracks.values())).tenant


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
