"""What the scheduler side plans and starts, and offers when it has landed, against fakes."""

from __future__ import annotations

from types import SimpleNamespace

from tests.vllm_hook.fakes import BLOCK, admit, back, joined, prefix, request, step_of
from vllm_hook.guard import Guard
from vllm_hook.metadata import Load


def test_failure_does_not_lose_a_planned_load():
    side, control = joined()
    control.found = 2
    assert admit(side, request("a", 10), [1, 2]) == 8
    control.broken.add("retire")
    with Guard("test", side.fail):
        side.dispatch(step_of(new={"b": ([9], 0, 4)}))
    (load,) = side.plain_step().loads
    assert load.request_id == "a" and load.slots.tolist() == [1, 2], "the request would wait for ever"


def test_import_is_planned_once_and_leaves_a_token():
    side, control = joined()
    control.found = 100
    one = request("a", 12)
    assert side.match(one, 4) == (4, True), "all but the first and the last block"
    assert side.match(one, 4) == (4, True), "not allocated: vLLM may ask again"
    side.allocated(one, [1, 2], 4)
    step = side.dispatch(step_of())
    assert [load.slots.tolist() for load in step.loads] == [[2]]
    assert side.dispatch(step_of()).loads == ()
    side.returned(back(step.step, finished={"a"}, invalid={2}))
    assert side.match(one, 4) == (0, False), "the same source again: vLLM would retry for ever"


def test_imported_blocks_are_offered_as_far_as_every_rank_has_them():
    side, control = joined(ranks=2)
    control.found = 3
    assert admit(side, request("a", 13), [1, 2, 3]) == 12
    step = side.dispatch(step_of())
    side.returned(back(step.step, invalid={3}, ranks=2))
    assert control.live() == {}
    side.returned(back(side.dispatch(step_of()).step, finished={"a"}, ranks=2))
    assert control.live() == {}, "offered while the request waits for its next step"
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3, 4], 8, 3)})).step, ranks=2))
    assert control.live() == {}, "offered while its first token is on its way out"
    side.dispatch(step_of())
    assert control.live() == {1: prefix(1), 2: prefix(2)}


def test_a_worker_on_this_thread_starts_loads_as_soon_as_their_pages_are_retired():
    started: list[tuple[Load, list[str]]] = []
    side, control = joined(worker=SimpleNamespace(start_now=lambda load: started.append((load, list(control.log)))))
    control.found = 2
    admit(side, request("a", 13), [1, 2])
    ((load, before),) = started
    assert load.slots.tolist() == [1, 2] and before[-1] == "retire"
    assert side.dispatch(step_of()).loads == (load,), "workers elsewhere, and the end of it"
    two = request("b", 13)
    external, _ = side.match(two, 0)
    side.invalidate("test")
    side.allocated(two, [3, 4], external)
    assert len(started) == 1 and side.dispatch(step_of()).loads[0].hit is None
    side.close()
    assert side._loads.start_now is None, "it would keep the engine's pages"


def test_ranks_start_their_loads_with_their_step():
    side, control = joined(ranks=2, worker=SimpleNamespace(start_now=lambda load: 1 / 0))
    control.found = 2
    admit(side, request("a", 13), [1, 2])
    assert len(side.dispatch(step_of()).loads) == 1


def test_abort_during_a_load():
    side, control = joined()
    control.found = 2
    admit(side, request("a", 9), [1, 2])
    step = side.dispatch(step_of())
    side.finished("a")
    side.returned(back(step.step, finished={"a"}))
    assert control.live() == {}


def test_a_hit_of_fewer_tokens_than_asked_for_is_computed():
    side, control = joined(min_tokens=2 * BLOCK + 1)
    control.found = 2
    assert side.match(request("a", 6 * BLOCK), 0) == (0, False)
    control.found = 3
    assert side.match(request("b", 6 * BLOCK), 0) == (3 * BLOCK, True)
