"""What the scheduler side puts off until no request waits for it, against fakes."""

from __future__ import annotations

from tests.vllm_hook.scheduler.fakes import FakeControl, FakeWorker, admit, back, joined, prefix, request, step_of
from vllm_hook.scheduler.side import SchedulerSide


def test_what_was_retired_is_taken_down_while_the_device_computes():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    control.found = 1
    admit(side, request("b", 8), [1, 3])
    assert set(control.live()) == {2}
    assert side.dispatch(step_of()).loads and 1 in control.standing, "a load waited for this"
    one = side.dispatch(step_of())
    assert 1 not in control.standing and not side.dispatch(step_of()).loads
    side.returned(back(one.step, finished={"b"}))
    two = side.dispatch(step_of(new={"b": ([1, 3], 4, 4)}))
    assert 1 not in control.live(), "the step waited for this"
    three = side.dispatch(step_of(cached={"b": (None, 8, 1)}))
    side.returned(back(two.step))
    assert 1 not in control.live(), "the first token waited for this"
    side.dispatch(step_of(cached={"b": (None, 9, 1)}))
    assert control.live()[1] == prefix(1) and control.live()[3] == prefix(2)
    side.invalidate("test")
    side.returned(back(three.step))
    assert control.live() == {}


def test_what_was_retired_is_taken_down_with_the_next_step_that_overlaps_another():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    side.dispatch(step_of(cached={"a": (None, 8, 1)}))
    admit(side, request("b", 8), [1, 3])
    assert 1 in control.standing
    side.dispatch(step_of(new={"b": ([1, 3], 0, 8)}))
    assert 1 not in control.standing, "the device computes meanwhile"


def test_blocks_of_the_first_step_after_a_rest_are_offered_behind_its_token():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    side.dispatch(step_of())
    admit(side, request("b", 8), [3, 4])
    first = side.dispatch(step_of(new={"b": ([3, 4], 0, 4)}))
    second = side.dispatch(step_of(cached={"b": (None, 4, 4)}))
    side.returned(back(first.step))
    assert set(control.live()) == {1, 2}
    side.returned(back(second.step))
    assert set(control.live()) == {1, 2, 3, 4}, "only the first output is waited for"


def test_what_was_put_off_is_done_before_the_next_step_where_steps_do_not_overlap():
    side, control = joined()
    side.dispatch(step_of())
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 4)})).step))
    assert control.live() == {}
    side.dispatch(step_of(cached={"a": (None, 4, 4)}))
    assert control.live() == {1: prefix(1)}, "a chunk may take long, and others wait for this"


def loading(worker: FakeWorker | None = None) -> tuple[SchedulerSide, FakeControl, int]:
    """A request "b" whose load has just been dispatched, with nothing else to do but to take down page 1."""
    side, control = joined(worker=worker)
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    control.found = 1
    admit(side, request("b", 8), [1, 3])
    step = side.dispatch(step_of())
    assert step.loads
    return side, control, step.step


def test_what_is_left_to_do_when_a_load_has_ended_is_done_behind_the_first_token():
    side, control, own = loading()
    side.returned(back(own, finished={"b"}))
    first = side.dispatch(step_of(new={"b": ([1, 3], 4, 4)}))
    assert 1 in control.standing, "the step waited for this"
    side.returned(back(first.step))
    assert 1 in control.standing, "the first token waited for this"
    side.dispatch(step_of(cached={"b": (None, 8, 1)}))
    assert control.live()[1] == prefix(1)


def test_an_empty_step_behind_a_load_that_has_landed_does_nothing_else():
    worker = FakeWorker()
    side, control, own = loading(worker)
    worker.whole = {"b"}
    empty = side.dispatch(step_of())
    side.returned(back(own))
    first = side.dispatch(step_of(new={"b": ([1, 3], 4, 4)}))
    assert 1 in control.standing, "the step waited for this"
    side.returned(back(empty.step, finished={"b"}))
    assert 1 in control.standing and len(side._deferred), "it runs, but its token is waited for"
    side.returned(back(first.step))
    side.dispatch(step_of(cached={"b": (None, 8, 1)}))
    assert control.live()[1] == prefix(1)


def beside() -> tuple[SchedulerSide, FakeControl]:
    """A request "b" that has just got its pages for a load, beside "a", of which 8 tokens are computed."""
    side, control = joined()
    admit(side, request("a", 12), [1, 2, 3])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 8)})).step))
    control.found = 1
    admit(side, request("b", 8), [4, 5])
    return side, control


def test_a_load_that_ends_beside_a_running_request_keeps_nothing_waiting():
    side, control = beside()
    own = side.dispatch(step_of(cached={"a": (None, 8, 4)}))
    side.dispatch(step_of(cached={"a": (None, 12, 1)}))
    side.returned(back(own.step, finished={"b"}))
    assert set(control.live()) == {1, 2, 3}, "the next step computes meanwhile"


def test_beside_a_running_request_it_is_done_behind_the_first_token_too_where_steps_do_not_overlap():
    side, control = beside()
    side.returned(back(side.dispatch(step_of(cached={"a": (None, 8, 4)})).step, finished={"b"}))
    first = side.dispatch(step_of(new={"b": ([4, 5], 4, 4)}, cached={"a": (None, 12, 1)}))
    side.returned(back(first.step))
    assert set(control.live()) == {1, 2}, "its first token waited for this"
    side.dispatch(step_of(cached={"a": (None, 13, 1), "b": (None, 8, 1)}))
    assert set(control.live()) == {1, 2, 3, 4, 5}


def test_what_is_left_to_do_is_done_though_a_load_ends_with_every_step():
    side, control = joined(wait_tokens=4)
    admit(side, request("0", 9), [1, 2, 3])
    control.found = 1
    for i in range(20):  # each step computes all of one request and brings the load of the next
        this, after = str(i), str(i + 1)
        pages = [3 * i + k for k in range(1, 7)]
        admit(side, request(after, 9), pages[3:])
        step = side.dispatch(step_of(new={this: (pages[:3], 4 if i else 0, 5 if i else 9)}))
        assert step.loads
        side.finished(this)
        side.returned(back(step.step, finished={after}))
    assert len(side._deferred) < 30 and len(control.live()) > 20 and len(control.promises) < 6


def test_what_is_left_to_do_is_done_though_every_other_step_is_empty_and_all_bring_loads():
    worker = FakeWorker()
    side, control = joined(worker=worker)
    control.found, done = 1, []
    side._deferred.add(lambda: done.append(True))
    own = None
    for i in range(10):  # two at a time: the load of one is heard of with the one ahead of it
        name, pages = str(i), [2 * i + 1, 2 * i + 2]
        admit(side, request(name, 8), pages)
        step = side.dispatch(step_of(new={str(i - 1): ([2 * i - 1, 2 * i], 4, 4)} if i % 2 else None))
        worker.whole = {name}
        if own is not None:
            side.returned(back(own.step, finished={str(i - 1)}))
        own = step
    assert done


def test_blocks_of_the_last_request_are_offered_when_it_is_over():
    side, control = joined()
    control.found = 1
    admit(side, request("a", 9), [1, 2, 3])
    side.returned(back(side.dispatch(step_of()).step, finished={"a"}))
    step = side.dispatch(step_of(new={"a": ([1, 2, 3], 4, 5)}))
    side.returned(back(step.step))
    assert control.live() == {}
    side.finished("a")  # nothing calls us any more until the next request comes
    assert control.live() == {1: prefix(1), 2: prefix(2)}


def test_blocks_of_an_aborted_first_step_are_offered():
    side, control = joined()
    side.dispatch(step_of())
    admit(side, request("a", 8), [1, 2])
    step = side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    side.finished("a")
    side.returned(back(step.step))
    assert set(control.live()) == {1, 2}


def test_what_is_put_off_is_done_though_the_first_step_never_comes_back():
    side, control = joined(ranks=2)
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step, ranks=2))
    side.dispatch(step_of())
    admit(side, request("b", 8), [1, 3])
    side.dispatch(step_of(new={"b": ([1, 3], 0, 8)}))
    for _ in range(2):
        assert 1 in control.standing
        side.returned(back(side.dispatch(step_of(cached={"b": (None, 8, 1)})).step, ranks=1))
    side.dispatch(step_of())
    assert 1 not in control.standing


def test_workers_look_out_for_loads_only_while_nothing_computes():
    side, _ = joined()
    assert side.dispatch(step_of()).idle
    admit(side, request("a", 8), [1, 2])
    computing = side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    assert not computing.idle and not side.dispatch(step_of()).idle
    side.returned(back(computing.step))
    assert side.dispatch(step_of()).idle


def test_a_page_is_taken_down_before_it_is_offered_again_whatever_came_between():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    admit(side, request("b", 40), list(range(10, 20)))
    side.dispatch(step_of(new={"b": (list(range(10, 20)), 0, 3)}))
    side.dispatch(step_of(cached={"b": (None, 3, 1)}))  # while the device computes: nothing is left to do
    admit(side, request("c", 8), [1, 3])
    control.found = 2
    admit(side, request("d", 12), [4, 5, 6])  # its load is not to be held up
    step = side.dispatch(step_of(new={"c": ([1, 3], 0, 8)}))
    assert step.loads
    side.returned(back(step.step))  # the outputs before it brought nothing for a connector
    side.returned(back(side.dispatch(step_of()).step))
    assert control.live()[1] == prefix(1) and control.live()[3] == prefix(2)


def test_an_import_that_waits_to_be_offered_dies_with_all_offers():
    side, control = joined()
    control.found = 1
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of()).step, finished={"a"}))
    side.invalidate("test")
    side.returned(back(side.dispatch(step_of()).step))
    assert control.live() == {}


def test_a_request_that_comes_when_none_is_left_does_not_wait_either():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    side.finished("a")  # an engine in its caller's process steps no further
    admit(side, request("b", 8), [3, 4])
    side.returned(back(side.dispatch(step_of(new={"b": ([3, 4], 0, 8)})).step))
    assert set(control.live()) == {1, 2}
    side.dispatch(step_of(cached={"b": (None, 8, 1)}))
    side.returned(back(side.dispatch(step_of()).step))
    assert set(control.live()) == {1, 2, 3, 4}
