"""The worker side against a fake data half: every load ends, and what it could not fill is said."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest

from tests.vllm_hook.worker.fakes import HIT, load, worker
from vllm_hook.guard import Guard
from vllm_hook.metadata import RankMemory, StepDone, StepMetadata


def test_far_pools_are_mapped_ahead():
    side, data = worker()
    side.start(StepMetadata(1, far=("a", "b")))
    assert data.far == ["a", "b"] and data.gone == []
    side.refuse("for some reason")
    side.start(StepMetadata(2, far=("c",)))
    assert data.far == ["a", "b"]


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


def test_a_load_that_raises_keeps_no_other_from_ending():
    side, data = worker()
    side.start(StepMetadata(1, tuple(load(name, HIT, 4 + at) for at, name in enumerate("abcd"))))
    data.moved[2].done = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    ended: set[str] = set()
    for moved in data.moved:
        moved.valid = [True]
        for _ in range(2):
            with Guard("get_finished", side.failed):
                side.poll()
        ended |= side.take_finished()
    assert ended == {"a", "b", "d"} and side.take_bad() == set(), "the copy may be under way still"


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


def test_weights_that_change_between_two_steps_count_though_the_scheduler_looks_first():
    side, data = worker()
    weights = FakeWeights()
    side._weights = weights  # type: ignore[assignment]
    side.begin()
    side.start(StepMetadata(1, (load("a", HIT, 4, 5, 6),)))
    data.moved[0].valid = [True] * 3
    weights.current = "new"
    assert side.landed() == set(), "who computes with the new ones must not have it"
    side.begin()
    side.poll()
    assert side.take_finished() == {"a"} and side.take_bad() == {4, 5, 6}
