"""What the scheduler side puts off until no request waits for it, against fakes."""

from __future__ import annotations

from tests.vllm_hook.fakes import BLOCK, admit, back, joined, request, step_of


def prefix(blocks: int) -> tuple[int, ...]:
    return tuple(range(blocks * BLOCK))


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
    side.dispatch(step_of())
    assert control.live()[1] == prefix(1)
    side.invalidate("test")
    side.returned(back(two.step))
    assert control.live() == {}


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
