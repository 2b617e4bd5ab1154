"""All offers die at once, and nothing that rests on blocks from before is offered again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vllm_hook.scheduler.fakes import FakeControl, admit, back, joined, prefix, request, step_of
from vllm_hook.metadata import StepDone
from vllm_hook.scheduler.side import SchedulerSide

Ways = pytest.mark.parametrize("way", [SchedulerSide.invalidate, SchedulerSide.fail], ids=["reset", "failure"])
Way = Callable[[SchedulerSide, str], None]


def running(**more: int) -> tuple[SchedulerSide, FakeControl, int]:
    """A request "a" with a block on offer and another one in a step that is under way."""
    side, control = joined(**more)
    admit(side, request("a", 16), [1, 2, 3, 4])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3, 4], 0, 4)})).step))
    assert control.live() == {1: prefix(1)}
    return side, control, side.dispatch(step_of(cached={"a": (None, 4, 4)})).step


@Ways
def test_running_requests_offer_nothing_any_more(way: Way):
    side, control, flying = running()
    way(side, "test")
    assert control.live() == {}
    further = side.dispatch(step_of(cached={"a": (None, 8, 4)}))
    for step in (flying, further.step):
        side.returned(back(step))
    last = side.dispatch(step_of(cached={"a": (None, 12, 4)}))
    side.returned(back(last.step))
    side.finished("a")
    assert control.live() == {} and not control.standing.keys() - {1}


@Ways
def test_blocks_of_a_request_that_is_over_which_wait_to_be_offered(way: Way):
    side, control = joined()
    side.dispatch(step_of())
    admit(side, request("a", 8), [1, 2])
    admit(side, request("b", 8), [3, 4])
    step = side.dispatch(step_of(new={"a": ([1, 2], 0, 8), "b": ([3, 4], 0, 4)}))
    side.returned(back(step.step))
    side.finished("a")
    assert len(side._deferred), "they are offered behind the first token"
    way(side, "test")
    side.returned(back(side.dispatch(step_of()).step))
    side.dispatch(step_of())
    assert control.live() == {}


@Ways
def test_loads_under_way(way: Way):
    side, control, _ = running()
    control.found = 2
    admit(side, request("b", 12), [5, 6, 7])
    step = side.dispatch(step_of())
    way(side, "test")
    side.returned(back(step.step, finished={"b"}))
    for _ in range(3):
        side.returned(back(side.dispatch(step_of()).step))
    assert control.live() == {}


@Ways
def test_hits_that_were_found_before(way: Way):
    side, control, _ = running()
    control.found = 2
    external, _ = side.match(one := request("b", 12), 0)
    way(side, "test")
    side.allocated(one, [5, 6, 7], external)
    (load,) = side.dispatch(step_of()).loads
    assert load.hit is None and load.slots.tolist() == [6, 7], "where a load ends: what it was to fill is computed"


@Ways
def test_new_requests_are_as_ever(way: Way):
    side, control, _ = running()
    way(side, "test")
    admit(side, request("b", 8), [5, 6])
    side.returned(back(side.dispatch(step_of(new={"b": ([5, 6], 0, 8)})).step))
    side.dispatch(step_of())
    assert control.live() == {5: prefix(1), 6: prefix(2)}


def test_a_request_that_ran_is_not_looked_up_after_a_reset_and_is_after_a_failure_of_ours():
    side, control, _ = running()
    control.found = 3
    one = side._states["a"].request
    side.invalidate("prefix cache reset")
    assert side.match(one, 0) == (0, False) and side._states["a"].refusal == "prefix cache reset"
    side.fail("test")
    assert side.match(one, 0) == (12, True), "what we knew of it is forgotten"


def test_the_first_reason_of_a_request_stays():
    side, _ = joined()
    admit(side, request("a", 8, lora_request=object()), [1, 2])
    side.invalidate("test")
    assert side._states["a"].refusal == "LoRA"


def test_whoever_has_left_calls_the_market_no_more():
    side, control, flying = running(wait_tokens=4)
    admit(side, request("b", 8), [1, 5])
    assert len(control.promises) == 2 and len(side._deferred)
    side.close()
    control.log.clear()
    side.finished("b")
    output = back(flying)
    output.kv_connector_worker_meta = StepDone(flying, unreachable=("a peer's",))
    side.returned(output)
    side.dispatch(step_of(cached={"a": ([6], 8, 8)}))
    side.finished("a")
    assert control.log == [] and control.closed
    side.close()


def test_an_engine_that_never_joined_closes_too():
    SchedulerSide(4, 1).close()
