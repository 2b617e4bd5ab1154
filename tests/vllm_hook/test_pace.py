"""Imports that are too small to be sooner than computing: an engine's own steps say which."""

from __future__ import annotations

import pytest

from kvmarket import counters
from tests.vllm_hook.fakes import BLOCK, back, joined, request, step_of
from vllm_hook import pace
from vllm_hook.pace import FULL, IDLE_SECONDS, LOAD_STEPS, MANY, Pace

STEP, TOKEN = 0.02, 50e-6  # seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace.time, "perf_counter", made)
    return made


def run(made: Pace, clock: Clock, *steps: int, overlap: bool = False) -> None:
    """Steps of so many tokens each; `overlap`: each is dispatched when the one before it begins."""
    for number, tokens in enumerate(steps, 1):
        if not overlap:
            made.dispatched(number, tokens)
        elif number == 1:
            made.dispatched(1, tokens)
        if overlap and number < len(steps):
            made.dispatched(number + 1, steps[number])
        clock.now += max(STEP, tokens * TOKEN)
        made.returned(number)


def busy(clock: Clock, *, overlap: bool = False) -> Pace:
    """An engine that knows what a token costs, and now makes steps of 20 ms with a few tokens each."""
    made = Pace(False)
    run(made, clock, 4 * MANY, *[16] * 40, overlap=overlap)
    made.dispatched(100, 16)
    return made


@pytest.mark.parametrize("overlap", [False, True])
def test_a_busy_engine_computes_a_few_tokens_and_imports_many(clock, overlap):
    made = busy(clock, overlap=overlap)
    even = round(LOAD_STEPS * STEP / TOKEN)
    assert not made.pays(even * 9 // 10)
    assert made.pays(even * 11 // 10)


def test_an_idle_engine_imports_whatever_there_is(clock):
    made = busy(clock)
    clock.now += STEP
    made.returned(100)
    assert not made.pays(16), "the next step follows at once"
    clock.now += 2 * IDLE_SECONDS
    assert made.pays(16)


@pytest.mark.parametrize(("share", "pays"), [(0.8, False), (1.1, True)])
def test_an_engine_full_of_prompts_imports_whatever_there_is(clock, share, pays):
    made = Pace(False)
    run(made, clock, 4 * MANY, *[round(share * FULL * STEP / TOKEN)] * 40)
    made.dispatched(100, 16)
    assert made.pays(16) == pays


def test_what_a_token_costs_must_be_known(clock):
    made = Pace(False)
    run(made, clock, *[16] * 40)
    made.dispatched(100, 16)
    assert made.pays(16)


def test_steps_without_tokens_do_not_count(clock):
    made = busy(clock)
    made.dispatched(101, 0)
    clock.now += STEP
    made.returned(101)
    clock.now += 2 * IDLE_SECONDS
    assert made.pays(16), "nothing is in flight"


def test_a_hit_that_does_not_pay_is_computed_and_counted(clock):
    side, control = joined(import_all=False)
    control.found = 4
    for tokens in (4 * MANY, *[1] * 40):
        step = side.dispatch(step_of(cached={"another": (None, 0, tokens)})).step
        clock.now += max(STEP, tokens * TOKEN)
        side.returned(back(step))
    side.dispatch(step_of(cached={"another": (None, 0, 1)}))
    reason = "vllm_import_refused{a busy engine computes so few tokens sooner}"
    before = counters.snapshot().get(reason, 0)
    assert side.match(request("b", 4 * BLOCK + 1), 0) == (0, False)
    assert counters.snapshot()[reason] == before + 1
