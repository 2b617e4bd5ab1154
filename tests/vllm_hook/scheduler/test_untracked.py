"""Pages of requests that the scheduler side knows nothing of are retired too: what was on offer there is gone."""

from __future__ import annotations

import pytest

from tests.vllm_hook.scheduler.fakes import FakeControl, FakePool, admit, back, joined, prefix, request, step_of
from vllm_hook.scheduler import outputs
from vllm_hook.scheduler.requests import RequestState, state_of
from vllm_hook.scheduler.side import SchedulerSide


def offering(pages: list[int], pool: FakePool | None = None) -> tuple[SchedulerSide, FakeControl]:
    """A scheduler side with these pages on offer, of a request that is over."""
    side, control = joined(pool)
    admit(side, request("a", 4 * len(pages)), pages)
    side.returned(back(side.dispatch(step_of(new={"a": (pages, 0, 4 * len(pages))})).step))
    side.finished("a")
    assert control.live() == {page: prefix(at) for at, page in enumerate(pages, 1)}
    return side, control


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"new": {"b": ([2, 3], 0, 8)}}, {1}),
        ({"cached": {"b": ([3], 4, 4)}}, {1, 2}),
        ({"cached": {"b": ([2, 1], 0, 8)}, "resumed": {"b"}}, {3}),
        ({"cached": {"b": (None, 4, 4)}}, {1, 2, 3}),
        ({"new": {"b": ([1], 0, 4)}, "cached": {"c": ([3], 4, 4), "d": (None, 8, 1), "e": ([2], 4, 4)}}, set()),
    ],
    ids=["begins", "grows", "resumes", "goes on", "several"],
)
def test_pages_of_a_step(how: dict[str, object], left: set[int]):
    side, control = offering([1, 2, 3])
    step = side.dispatch(step_of(**how))  # type: ignore[arg-type]
    assert set(control.live()) == left, "before the step is dispatched, not after"
    side.returned(back(step.step))
    side.dispatch(step_of())
    assert set(control.live()) == left, "nothing of it is offered"


def test_pages_that_are_given_before_anybody_asked():
    side, control = offering([1, 2, 3])
    side.allocated(request("b", 8), [2, 3], 0)
    assert set(control.live()) == {1}


def test_pages_of_a_load_whose_request_was_forgotten():
    side, control = offering([1, 2, 3])
    control.found, one = 2, request("b", 12)
    external, _ = side.match(one, 0)
    side.fail("test")
    admit(side, request("c", 12), [1, 2, 3])
    control.standing.clear()
    before = dict(control.generation)
    side.allocated(one, [2, 3, 4], external)
    assert [control.generation[page] - before.get(page, 1) for page in (1, 2, 3, 4)] == [0, 1, 1, 1]
    (load,) = [load for load in side.dispatch(step_of()).loads if load.request_id == "b"]
    assert load.hit is None, "it ends at once, and is computed"


def test_pages_are_told_once_though_several_requests_share_them():
    states: dict[str, RequestState] = {"b": state_of(request("b", 12), "")}
    output = step_of(new={"b": ([1, 2], 0, 8), "c": ([1, 3], 4, 4)}, cached={"d": ([3, 4], 0, 8)})
    assert outputs.new_pages(output, states) == [1, 2, 3, 4]
    assert states["b"].slots == [1, 2]
    assert outputs.new_pages(step_of(new={"b": ([1, 2, 5], 8, 4)}), states) == [5], "the others are not news"


def test_pages_that_the_pool_reports_beside_those_of_the_step():
    pool = FakePool()
    side, control = offering([1, 2, 3, 4], pool)
    for page in (2, 3):
        pool.hand_out(page)
    assert set(control.live()) == {1, 2, 3, 4}, "it has not handed them to a step yet"
    side.allocated(request("b", 8), [3], 0)
    assert set(control.live()) == {1, 4}
    before = dict(control.generation)
    side.dispatch(step_of(new={"c": ([4], 0, 4)}))
    assert set(control.live()) == {1}
    assert control.generation[2] == before[2], "reported once, retired once"


def test_pages_that_vllm_told_to_another_connector_alone():
    """Under MultiConnector whoever does not load hears of no pages, until the step is dispatched."""
    side, control = offering([1, 2, 3, 4])
    side.match(one := request("b", 12), 0)
    side.allocated(one, [], 0)
    assert set(control.live()) == {1, 2, 3, 4}
    side.dispatch(step_of(new={"b": ([1, 2], 0, 8)}))
    assert set(control.live()) == {3, 4}
    side.match(one, 4)  # preempted
    side.allocated(one, [], 0)
    step = side.dispatch(step_of(cached={"b": ([1, 3, 5], 4, 8)}, resumed={"b"}))
    assert set(control.live()) == {4}
    side.returned(back(step.step))
    side.dispatch(step_of())
    blocks = {4: prefix(4), 2: prefix(2), 3: prefix(2), 5: prefix(3)}
    assert control.live() == blocks, "and it knows which block lies where"


def test_blocks_of_a_step_are_those_that_become_whole_in_it():
    state = state_of(request("b", 20), "")
    state.whole([1, 2, 3, 4, 5])

    def completed(done: int, now: int) -> list[tuple[int, list[int]]]:
        output = step_of(cached={"b": (None, done, now)})
        return [(first, slots) for _, first, slots in outputs.completed(output, {"b": state}, 4, speculates=False)]

    assert completed(0, 9) == [(0, [1, 2])]
    assert completed(9, 2) == []
    assert completed(11, 6) == [(2, [3, 4])]
    assert completed(17, 3) == [(4, [5])]
    state.refusal = "test"
    assert completed(0, 20) == []
