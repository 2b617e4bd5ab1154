"""What the scheduler side plans and starts, and offers when it has landed, against fakes."""

from __future__ import annotations

from kvmarket import counters
from tests.vllm_hook.scheduler.fakes import BLOCK, FakePool, FakeWorker, admit, back, joined, prefix, request, step_of
from vllm_hook.guard import Guard
from vllm_hook.metadata import Load
from vllm_hook.scheduler.side import SchedulerSide

NAMED_AGAIN = "vllm_import_refused{an older request of that name is not over}"


def heard(side: SchedulerSide, step: int, *finished: str) -> set[str]:
    """What vLLM hears of with a step's output in which the worker told of these."""
    output = back(step, finished=set(finished))
    side.returned(output)
    return set(output.finished_recving)


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
    worker = FakeWorker()
    worker.start_now = lambda load: started.append((load, list(control.log)))  # type: ignore[method-assign]
    side, control = joined(worker=worker)
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
    assert side._loads.worker is None, "it would keep the engine's pages"


def test_ranks_start_their_loads_with_their_step():
    worker = FakeWorker()
    side, control = joined(ranks=2, worker=worker)
    control.found = 2
    admit(side, request("a", 13), [1, 2])
    assert len(side.dispatch(step_of()).loads) == 1 and not worker.started
    worker.whole = {"a"}
    assert heard(side, 0) == set(), "the other rank may not have it"


def overlapping() -> tuple[SchedulerSide, FakeWorker, int, int]:
    """A step of request "b" that is under way, and behind it the one that brings the load of "a"."""
    worker = FakeWorker()
    side, control = joined(worker=worker)
    control.found = 2
    running = side.dispatch(step_of(new={"b": ([9], 0, 4)}))
    admit(side, request("a", 13), [1, 2])
    return side, worker, running.step, side.dispatch(step_of(cached={"b": (None, 4, 1)})).step


def test_what_has_landed_is_heard_of_with_the_step_that_is_back_first_and_once():
    side, worker, running, own = overlapping()
    worker.whole = {"a", "somebody else's"}
    assert heard(side, running) == {"a"}
    later = side.dispatch(step_of(new={"a": ([1, 2, 3], 8, 5)}))
    assert heard(side, own, "a", "c") == {"c"}, "vLLM takes it for the end of another load"
    assert heard(side, later.step, "a") == {"a"}, "a load of that name that was not reported early"


def test_what_was_told_early_is_left_out_later_whatever_went_wrong_since():
    side, worker, running, own = overlapping()
    worker.whole = {"a"}
    assert heard(side, running) == {"a"}
    side.finished("a")
    side.fail("test")
    side.close()
    assert heard(side, own, "a") == set()


def test_a_name_that_is_used_again_imports_nothing_until_the_old_load_has_been_told_of():
    side, worker, running, own = overlapping()
    worker.whole = {"a"}
    assert heard(side, running) == {"a"}
    side.finished("a")
    refused = counters.snapshot().get(NAMED_AGAIN, 0)
    assert side.match(request("a", 13), 0) == (0, False), "the old one's end would pass for its own"
    assert counters.snapshot()[NAMED_AGAIN] == refused + 1
    side.finished("a")
    assert heard(side, own, "a") == set()
    assert side.match(request("a", 13), 0) == (8, True)


def test_an_aborted_load_is_heard_of_with_its_own_step():
    side, worker, running, own = overlapping()
    side.finished("a")
    worker.whole = {"a"}
    assert heard(side, running) == set()
    assert heard(side, own, "a") == {"a"}


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


def test_a_hit_that_is_no_more_is_not_loaded():
    side, control = joined()
    control.found, one = 2, request("a", 12)
    assert side.match(one, 0) == (8, True)
    control.found = 0
    assert side.match(one, 0) == (0, False)
    side.allocated(one, [1, 2, 3], 8)
    (load,) = side.dispatch(step_of()).loads
    assert load.hit is None, "it ends at once"


def test_local_hits_in_front_of_a_load_stay_on_offer():
    side, control = joined()
    admit(side, request("a", 4), [1])
    side.returned(back(side.dispatch(step_of(new={"a": ([1], 0, 4)})).step))
    control.found = 3
    assert admit(side, request("b", 13), [1, 2, 3], local=BLOCK) == 2 * BLOCK
    assert control.live() == {1: prefix(1)}


def test_outputs_in_which_no_load_ends():
    side, _, running, own = overlapping()
    output = back(running)
    output.finished_recving = None
    side.returned(output)
    assert output.finished_recving == set()
    assert heard(side, own, "a") == {"a"}


def test_a_hit_within_a_block_is_left_to_vllm():
    side, control = joined()
    control.found = 2
    reason = "vllm_import_refused{local hit ends within a block}"
    before = counted(reason)
    assert side.match(request("a", 12), BLOCK + 1) == (0, False)
    assert "match" not in control.log and counted(reason) == before + 1
    assert side.match(request("b", 12), BLOCK) == (BLOCK, True)


def test_whoever_only_imports_offers_nothing_of_it():
    side, control = joined(offers=False)
    control.found = 2
    admit(side, request("a", 12), [1, 2])
    side.returned(back(side.dispatch(step_of()).step, finished={"a"}))
    for _ in range(3):
        side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 8, 4)})).step))
    assert control.standing == {} and "offer" not in control.log


def test_pages_of_a_load_are_watched_too():
    pool = FakePool()
    side, control = joined(pool)
    control.found = 2
    admit(side, request("a", 12), [1, 2])
    side.returned(back(side.dispatch(step_of()).step, finished={"a"}))
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2, 3], 8, 4)})).step))
    side.dispatch(step_of())
    assert set(control.live()) == {1, 2, 3}
    for page in (2, 3):
        pool.hand_out(page)  # to something that we never see
    side.dispatch(step_of())
    assert set(control.live()) == {1}


def test_hits_of_requests_that_are_over_are_forgotten():
    side, control = joined()
    control.found = 2
    assert side.match(request("a", 12), 0) == (8, True)
    side.finished("a")  # aborted before it got pages
    assert side._loads._found == {}


def counted(name: str) -> int:
    return counters.snapshot().get(name, 0)


def test_hits_are_counted_once_by_source():
    side, control = joined(imports=True, offers=False)  # who only imports counts what came all the same
    control.found = 5
    one = request("r", 5 * BLOCK + 1)
    own, imported, asked = map(counted, ("vllm_tokens_local", "vllm_tokens_imported", "vllm_tokens_asked"))
    assert side.match(one, 2 * BLOCK) == side.match(one, 2 * BLOCK) == (3 * BLOCK, True)  # asked again: no pages yet
    assert counted("vllm_tokens_local") == own and counted("vllm_tokens_asked") == asked
    side.allocated(one, [1, 2, 3, 4, 5], 3 * BLOCK)
    assert counted("vllm_tokens_asked") == asked + 3 * BLOCK
    step = side.dispatch(step_of())
    side.returned(back(step.step, finished={"r"}, invalid={5}))
    side.allocated(one, [1, 2, 3, 4, 5], 0)  # vLLM says it again when the load is over
    side.invalidate("a reset, before its blocks are offered")
    assert counted("vllm_tokens_imported") == imported, "LLM of 0.26 reads no step's metrics that has no outputs"
    side.dispatch(step_of(new={"r": ([1, 2, 3, 4, 5], 4 * BLOCK, BLOCK + 1)}))
    assert counted("vllm_tokens_local") == own + 2 * BLOCK and counted("vllm_tokens_asked") == asked + 3 * BLOCK
    assert counted("vllm_tokens_imported") == imported + 2 * BLOCK
    side.dispatch(step_of(cached={"r": (None, 5 * BLOCK + 1, 1)}))
    assert counted("vllm_tokens_imported") == imported + 2 * BLOCK, "once"
    assert not control.standing
