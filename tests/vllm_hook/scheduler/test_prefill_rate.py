"""How fast an engine computes prompts, by a clock that only the test moves."""

from __future__ import annotations

import pytest

from tests.vllm_hook.scheduler.fakes import BLOCK, admit, back, joined, request, step_of
from vllm_hook.scheduler import prefill_rate
from vllm_hook.scheduler.prefill_rate import DEFAULT, ENOUGH, KEPT, STEP_TOKENS, PrefillRate
from vllm_hook.scheduler.side import SchedulerSide


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(prefill_rate.time, "monotonic", lambda: now[0])
    return now


def compute(rate: PrefillRate, clock: list[float], step: int, tokens: int, seconds: float) -> None:
    """A step that nothing overlaps."""
    rate.dispatched(step, {"a": tokens})
    clock[0] += seconds
    rate.returned(step)


def test_until_it_has_measured_a_default_holds(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, ENOUGH):
        compute(rate, clock, step, 1000, 1.0)
        assert rate.seconds(1000) == 1000 / DEFAULT
    compute(rate, clock, ENOUGH, 1000, 1.0)
    assert rate.seconds(3000) == pytest.approx(3.0)


def test_idle_time_does_not_count(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, 6):
        clock[0] += 3600
        compute(rate, clock, step, 1000, 0.5)
    assert rate.seconds(1000) == pytest.approx(0.5)


def test_steps_that_overlap_are_not_counted_twice(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, 8):  # dispatched while the one ahead computes, each a second of the device
        rate.dispatched(step, {"a": 1000})
        clock[0] += 1.0
        rate.returned(step - 1)
    assert rate.seconds(1000) == pytest.approx(1.0)


def test_all_requests_of_a_step_count_and_steps_that_decode_do_not(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, 10, 2):
        rate.dispatched(step, {"a": STEP_TOKENS, "b": 1000 - STEP_TOKENS})
        clock[0] += 0.25
        rate.returned(step)
        rate.dispatched(step + 1, {str(number): STEP_TOKENS - 1 for number in range(300)})
        clock[0] += 7.0
        rate.returned(step + 1)
        rate.dispatched(step + 1, {})
    assert rate.seconds(1000) == pytest.approx(0.25)


def test_a_step_that_decodes_keeps_the_one_behind_it_waiting(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, 8, 2):
        rate.dispatched(step, {"a": 1})
        rate.dispatched(step + 1, {"a": 1000})
        clock[0] += 0.5
        rate.returned(step)
        clock[0] += 1.0
        rate.returned(step + 1)
    assert rate.seconds(1000) == pytest.approx(1.0)


def test_a_few_odd_steps_change_nothing(clock: list[float]):
    rate = PrefillRate()
    compute(rate, clock, 1, 1000, 60.0)  # compiles
    for step in range(2, 5):
        compute(rate, clock, step, 1000, 1.0)
    compute(rate, clock, 5, 1000, 0.0)  # its clock did not move
    compute(rate, clock, 6, 1000, 1e-6)  # seen together with the one ahead of it
    assert rate.seconds(1000) == pytest.approx(1.0)


def test_what_was_long_ago_is_forgotten(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, KEPT + 1):
        compute(rate, clock, step, 1000, 1.0)
    for step in range(KEPT + 1, KEPT + KEPT // 2 + 2):
        compute(rate, clock, step, 1000, 2.0)
    assert rate.seconds(1000) == pytest.approx(2.0)


def test_steps_whose_output_never_came_are_left_out(clock: list[float]):
    rate = PrefillRate()
    for step in range(1, 9, 2):
        rate.dispatched(step, {"a": 100_000})
        clock[0] += 5.0
        rate.dispatched(step + 1, {"a": 1000})
        clock[0] += 1.0
        rate.returned(step + 1)
    assert rate.seconds(1000) == pytest.approx(1.0) and not rate._in_flight


def scheduler_side(clock: list[float], ranks: int, seconds: float) -> SchedulerSide:
    """One that has computed four prompts, in a step of so many seconds each."""
    side, _ = joined(ranks=ranks)
    for number in range(4):
        one = request(str(number), 100 * BLOCK)
        admit(side, one, list(range(1, 101)))
        step = side.dispatch(step_of(new={str(number): (list(range(1, 101)), 0, 100 * BLOCK)}))
        clock[0] += seconds
        side.returned(back(step.step, ranks=ranks))
        side.finished(str(number))
        clock[0] += 10.0
        side.returned(back(step.step, ranks=ranks - 1))
    return side


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_scheduler_side_measures_its_steps(clock: list[float], ranks: int):
    side = scheduler_side(clock, ranks, 0.5)
    assert side._in_flight._seconds(100 * BLOCK) == pytest.approx(0.5)
