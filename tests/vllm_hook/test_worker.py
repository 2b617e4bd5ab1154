"""The worker side against a fake data half: every load ends, and what it could not fill is said."""

from __future__ import annotations

import gc
import pickle
import time
import weakref
from typing import Any

import pytest

from kvmarket.offer import Hit
from kvmarket.pool import as_slots
from vllm_hook import worker as worker_module
from vllm_hook.guard import Guard
from vllm_hook.metadata import Load, RankMemory, StepDone, StepMetadata
from vllm_hook.worker import WorkerSide

HIT = Hit(12, 3, 0, (), {})


class FakeMoved:
    seconds = 0.0

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.valid: list[bool] = []
        self.looks = 0

    def done(self) -> bool:
        self.looks += 1
        return bool(self.valid)

    def wait(self) -> int:
        return [*self.valid, False].index(False)


class FakeData:
    def __init__(self) -> None:
        self.moved: list[FakeMoved] = []
        self.broken = False
        self.gone: list[str] = []

    def fetch(self, hit: Hit, slots: Any) -> FakeMoved:
        if self.broken:
            raise RuntimeError("fetch is broken")
        self.moved.append(FakeMoved())
        return self.moved[-1]

    def forget(self, pools: Any) -> None:
        self.gone += pools


def load(name: str, hit: Hit | None, *slots: int) -> Load:
    return Load(name, hit, as_slots(slots))


def worker() -> tuple[WorkerSide, FakeData]:
    side, data = WorkerSide(None, None), FakeData()
    side._data = data  # type: ignore[assignment]
    return side, data


def test_loads_end_when_the_copy_has():
    side, data = worker()
    side.start(StepMetadata(1, (load("a", HIT, 4, 5, 6), load("b", HIT, 7, 8, 9)), ("gone",)))
    side.poll()
    assert side.take_finished() == set() and data.gone == ["gone"]
    data.moved[1].valid, data.moved[1].seconds = [True, False, True], 0.25
    side.poll()
    assert side.take_seconds() == [0.25] and side.take_seconds() == []
    assert side.take_finished() == {"b"} and side.take_bad() == {8, 9}, "only leading blocks count"
    data.moved[0].valid = [True] * 3
    side.poll()
    assert side.take_finished() == {"a"} and side.take_bad() == set()
    side.poll()
    assert side.take_finished() == set(), "said twice"


def test_what_has_landed_whole_with_the_last_step_or_since():
    side, data = worker()
    side.start(StepMetadata(1, tuple(load(name, HIT, 4 + at) for at, name in enumerate("abc"))))
    assert side.landed() == set()
    data.moved[0].valid, data.moved[1].valid = [True], [False]
    side.poll()
    assert side.take_finished() == {"a", "b"} and side.landed() == {"a"}
    data.moved[2].valid = [True]
    assert side.landed() == {"a", "c"}, "seen since"
    assert side.take_finished() == {"c"} and side.landed() == {"c"}
    assert side.take_finished() == set() and side.landed() == set()


def test_a_load_that_was_started_ahead_of_its_step_is_not_started_again():
    side, data = worker()
    one = load("a", HIT, 4, 5, 6)
    side.start_now(one)
    side.poll()
    assert len(data.moved) == 1 and data.moved[0].looks == 0, "it ends with its step or later"
    data.moved[0].valid = [True, True, False]
    side.start(StepMetadata(1, (one, load("b", HIT, 7, 8, 9))))
    side.poll()
    assert len(data.moved) == 2
    assert side.take_finished() == {"a"} and side.take_bad() == {6}


def test_a_load_that_cannot_be_started_ahead_is_started_by_its_step():
    side, data = worker()
    data.broken = True
    one = load("a", HIT, 4, 5, 6)
    side.start_now(one)
    side.start_now(load("b", None, 7))
    data.broken = False
    side.start(StepMetadata(1, (one,)))
    assert len(data.moved) == 1


def test_what_was_started_ahead_lands_before_its_pages_are_given_up(monkeypatch: pytest.MonkeyPatch):
    side, data = worker()
    one = load("a", HIT, 4, 5, 6)
    side.start_now(one)
    waited: list[int] = []
    monkeypatch.setattr(data.moved[0], "wait", lambda: waited.append(1) or 3)
    monkeypatch.setattr(data, "forget", lambda _: 1 / 0)
    with Guard("start_load_kv", side.failed):
        side.start(StepMetadata(1, (one,), ("gone",)))
    assert waited == [1] and side.take_finished() == {"a"} and side.take_bad() == {4, 5, 6}


def test_a_load_ahead_of_a_step_with_other_weights_ends_bad_when_it_has_landed(monkeypatch: pytest.MonkeyPatch):
    side, data = worker()
    one = load("a", HIT, 4, 5, 6)
    side.start_now(one)
    side._computing_with = "new"
    side.start(StepMetadata(1, (one,)))
    side.poll()
    assert side.take_finished() == set(), "the copy is under way"
    data.moved[0].valid = [True] * 3
    side.poll()
    assert side.take_finished() == {"a"} and side.take_bad() == {4, 5, 6}


def test_a_worker_is_known_to_the_scheduler_of_its_process_alone():
    side, _ = worker()
    memory = RankMemory(None, None, here=weakref.ref(side))
    assert memory.worker() is side
    assert pickle.loads(pickle.dumps(memory)).worker() is None and memory == pickle.loads(pickle.dumps(memory))
    del side
    gc.collect()
    assert memory.worker() is None
    assert RankMemory(None, None).worker() is None


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


def test_how_fast_loads_are_is_what_the_fastest_of_late_was():
    side, data = worker()
    for seconds, pages, pace in ((3.0, 3, 1.0), (9.0, 3, 1.05), (1.0, 2, 0.5), (0.0, 2, 0.5)):
        ended(side, data, seconds, pages)
        assert side._pace == pytest.approx(pace)
    side.start(StepMetadata(1, (load("a", HIT, 4, 5),)))
    data.moved[-1].valid, data.moved[-1].seconds = [True], 1e-6
    side.poll()
    assert side._pace == pytest.approx(0.5), "what was cut short says nothing"


def test_loads_that_cannot_start_fail_at_once():
    side, data = worker()
    data.broken = True
    with Guard("test", side.failed):
        side.start(StepMetadata(1, (load("a", HIT, 4, 5), load("b", HIT, 6, 7))))
    assert side.take_finished() == {"a", "b"} and side.take_bad() == {4, 5, 6, 7}
    assert side.take_seconds() == []
    side.start(StepMetadata(2, (load("c", None, 8),)))
    assert side.take_finished() == {"c"} and side.take_bad() == {8}
    side.refuse("no memory")
    side.start(StepMetadata(3, (load("d", HIT, 9),)))
    assert side.take_finished() == {"d"} and side.handshake().refusal == "no memory"


def test_ranks_are_counted():
    both = StepDone(4, unreachable=("p",)).aggregate(StepDone(5))
    assert both == StepDone(4, 2, ("p",))


class FakeWeights:
    current = ""

    def name(self) -> str:
        return self.current


def test_loads_fail_where_the_weights_are_not_those_of_the_blocks():
    side, data = worker()
    weights = FakeWeights()
    side._weights = weights  # type: ignore[assignment]
    side._rank = 1
    side.begin()
    side.start(StepMetadata(1, (load("a", HIT, 4, 5, 6),), weights=((0, "new"),)))
    assert len(data.moved) == 1, "another rank's weights are no matter of this one"
    assert side.done(StepMetadata(1)) == StepDone(1)
    weights.current = "new"
    assert side.done(StepMetadata(1)) == StepDone(1), "they were changed after the step had begun"
    side.begin()
    data.moved[0].valid = [True] * 3
    side.poll()
    assert side.take_finished() == {"a"} and side.take_bad() == {4, 5, 6}, "they were changed while it was loaded"
    side.start(StepMetadata(2, (load("b", HIT, 7),)))
    assert side.take_finished() == {"b"} and side.take_bad() == {7}
    assert side.done(StepMetadata(2)) == StepDone(2, weights=((1, "new"),))
    side.start(StepMetadata(3, (load("c", HIT, 8),), weights=((1, "new"),)))
    data.moved[1].valid = [True]
    side.poll()
    assert side.take_finished() == {"c"} and side.take_bad() == set()
