"""Empty steps look out for the end of a load, as long as it is due and nobody else waits."""

from __future__ import annotations

import pytest

from tests.vllm_hook.worker.fakes import HIT, FakeData, load, worker
from vllm_hook.metadata import StepMetadata
from vllm_hook.worker import side as worker_module
from vllm_hook.worker.side import WorkerSide


def ended(side: WorkerSide, data: FakeData, seconds: float, pages: int) -> None:
    """A load of so many pages, which took so long."""
    side.start(StepMetadata(1, (load("x", HIT, *range(pages)),)))
    data.moved[-1].valid, data.moved[-1].seconds = [True] * pages, seconds
    side.poll()
    assert side.take_finished() == {"x"}


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.meanwhile = 100.0, lambda: None

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(worker_module, "LOOKOUT_SECONDS", 2.0)
    monkeypatch.setattr(worker_module, "LOOK_SECONDS", 0.25)
    return clock


def started(side: WorkerSide, data: FakeData, clock: Clock, *pages: int) -> StepMetadata:
    """An idle step that brings loads of so many pages each."""
    step = StepMetadata(2, tuple(load(str(count), HIT, *range(count)) for count in pages), idle=True)
    side.start(step)
    for moved in data.moved[-len(pages) :]:
        moved.begun = clock.now
    return step


def waited(side: WorkerSide, clock: Clock, step: StepMetadata | None) -> float:
    """How long a step looked out."""
    start = clock.now
    side.poll(step)
    return clock.now - start


IDLE = StepMetadata(3, idle=True)


def test_an_idle_step_looks_out_for_the_end_of_a_load_and_no_other_step_does(clock: Clock):
    side, data = worker()
    assert waited(side, clock, IDLE) == 0, "no load is under way"
    first = started(side, data, clock, 3)
    for step in (first, None, StepMetadata(2)):
        assert waited(side, clock, step) == 0
    assert waited(side, clock, IDLE) == 2
    clock.meanwhile = lambda: setattr(data.moved[0], "valid", [True] * 3)
    assert waited(side, clock, IDLE) == 0.25
    assert waited(side, clock, IDLE) == 0, "its end has to be told first"
    assert side.take_finished() == {"3"}


def test_it_looks_out_longer_where_a_load_is_about_to_end(clock: Clock):
    side, data = worker()
    ended(side, data, seconds=12.0, pages=4)
    assert waited(side, clock, started(side, data, clock, 3, 5)) == 0, "neither is short"
    assert waited(side, clock, IDLE) == 2, "9 s are left"
    clock.now += 4
    assert waited(side, clock, IDLE) == 5, "3 s are left, and 2 s more"
    assert waited(side, clock, IDLE) == 2, "it should have ended: nobody knows"


def test_a_step_looks_out_for_a_load_of_its_own_that_is_known_to_be_short(clock: Clock):
    side, data = worker()
    ended(side, data, seconds=4.0, pages=4)
    assert waited(side, clock, started(side, data, clock, 3)) == 0
    assert waited(side, clock, started(side, data, clock, 2)) == 4
    clock.meanwhile = lambda: setattr(data.moved[-1], "valid", [True])
    assert waited(side, clock, started(side, data, clock, 1)) == 0.25


def test_no_step_waits_that_other_engines_wait_for(clock: Clock):
    side, data = worker()
    started(side, data, clock, 3)
    side._in_lockstep = True
    assert waited(side, clock, IDLE) == 0
    side._in_lockstep = False
    assert waited(side, clock, IDLE) == 2


def test_how_fast_loads_are_is_what_the_fastest_of_late_was():
    side, data = worker()
    for seconds, pages, pace in ((3.0, 3, 1.0), (9.0, 3, 1.05), (1.0, 2, 0.5), (0.0, 2, 0.5)):
        ended(side, data, seconds, pages)
        assert side._pace == pytest.approx(pace)
    side.start(StepMetadata(1, (load("a", HIT, 4, 5),)))
    data.moved[-1].valid, data.moved[-1].seconds = [True], 1e-6
    side.poll()
    assert side._pace == pytest.approx(0.5), "what was cut short says nothing"
