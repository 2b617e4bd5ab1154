"""The scheduler side against fakes: one test per hole in the argument that no wrong byte is ever offered."""

from __future__ import annotations

import pytest

from tests.vllm_hook.scheduler.fakes import BLOCK, FakePool, admit, back, joined, prefix, request, step_of
from vllm_hook.guard import Guard
from vllm_hook.metadata import RankMemory, StepDone
from vllm_hook.scheduler.side import SchedulerSide


def test_offers_whole_blocks_only_when_their_step_is_back():
    side, control = joined()
    admit(side, request("a", 10), [7, 8, 9])
    step = side.dispatch(step_of(new={"a": ([7, 8, 9], 0, 10)}))
    assert control.live() == {}
    side.returned(back(step.step - 1))
    assert control.live() == {}, "offered before the step that wrote it came back"
    side.returned(back(step.step))
    assert control.live() == {7: prefix(1), 8: prefix(2)}


def test_chunks_and_decode_are_offered_as_blocks_fill():
    side, control = joined()
    one = request("a", 10)
    admit(side, one, [1, 2])
    first = side.dispatch(step_of(new={"a": ([1, 2], 0, 6)}))
    second = side.dispatch(step_of(cached={"a": ([3], 6, 4)}))
    side.returned(back(first.step))
    assert control.live() == {1: prefix(1)}
    side.returned(back(second.step))
    assert control.live() == {1: prefix(1), 2: prefix(2)}
    third = side.dispatch(step_of(cached={"a": (None, 10, 1)}))
    fourth = side.dispatch(step_of(cached={"a": (None, 11, 1)}))  # token 11 is not known to the scheduler yet
    one.all_token_ids += [10]
    side.returned(back(third.step))
    one.all_token_ids += [11]
    side.returned(back(fourth.step))
    assert control.live()[3] == prefix(3)


def test_async_steps_that_run_past_the_stop_offer_only_known_tokens():
    side, control = joined()
    one = request("a", 7)
    admit(side, one, [1, 2])
    first = side.dispatch(step_of(new={"a": ([1, 2], 0, 7)}))
    second = side.dispatch(step_of(cached={"a": (None, 7, 1)}))  # its token was never accepted
    side.returned(back(first.step))
    side.finished("a")
    side.returned(back(second.step))
    assert control.live() == {1: prefix(1)}


def test_of_several_blocks_those_are_offered_whose_tokens_are_known():
    side, control = joined()
    one = request("a", 11)
    admit(side, one, [1, 2, 3])
    step = side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 12)}))  # preempted with its last token on the way
    side.returned(back(step.step))
    assert control.live() == {1: prefix(1), 2: prefix(2)}


def test_page_reused_before_its_offer_goes_out():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    first = side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    side.finished("a")  # aborted while the step is under way, pages freed and given to b
    admit(side, request("b", 8), [2, 3])
    second = side.dispatch(step_of(new={"b": ([2, 3], 0, 8)}))
    side.returned(back(first.step))
    assert control.live() == {1: prefix(1)}
    side.returned(back(second.step))
    assert control.live() == {1: prefix(1), 2: prefix(1), 3: prefix(2)}


def test_page_handed_out_by_the_pool_alone_is_retired():
    pool = FakePool()
    side, control = joined(pool)
    admit(side, request("a", 8), [1, 2])
    step = side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    side.returned(back(step.step))
    assert set(control.live()) == {1, 2}
    assert [block.ref_cnt for block in pool.blocks[:4]] == [1, 1, 1, 1]
    pool.hand_out(1)  # to something that we never see
    side.dispatch(step_of())
    assert set(control.live()) == {2}


def test_pages_watched_by_another_connector_are_left_alone():
    pool = FakePool()
    theirs = lambda block: None  # noqa: E731
    pool._reuse_watchers[1] = theirs
    side, _ = joined(pool)
    admit(side, request("a", 8), [1, 2])
    side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    assert pool._reuse_watchers[1] is theirs and pool._reuse_watchers[2] is not theirs


def test_pages_of_requests_that_are_not_shared_are_retired_too():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    other = request("b", 8, lora_request=object())
    admit(side, other, [2, 3])
    step = side.dispatch(step_of(new={"b": ([2, 3], 0, 8)}))
    side.returned(back(step.step))
    assert control.live() == {1: prefix(1)}


def test_local_hits_stay_on_offer():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    admit(side, request("b", 12), [1, 2, 3], local=8)
    side.returned(back(side.dispatch(step_of(new={"b": ([1, 2, 3], 8, 4)})).step))
    assert control.live() == {1: prefix(1), 2: prefix(2), 3: prefix(3)}


def test_preempted_request_resumes_on_other_pages():
    side, control = joined()
    one = request("a", 12)
    admit(side, one, [1, 2, 3])
    first = side.dispatch(step_of(new={"a": ([1, 2, 3], 0, 8)}))
    admit(side, request("b", 8), [2, 3])  # a was preempted with its step in flight
    second = side.dispatch(step_of(new={"b": ([2, 3], 0, 8)}))
    side.returned(back(first.step))
    assert control.live() == {1: prefix(1)}
    side.returned(back(second.step))
    admit(side, one, [1, 5, 6], local=4)
    third = side.dispatch(step_of(cached={"a": ([1, 5, 6], 4, 8)}, resumed={"a"}))
    side.returned(back(third.step))
    assert control.live() == {1: prefix(1), 2: prefix(1), 3: prefix(2), 5: prefix(2), 6: prefix(3)}


def test_reset_kills_offers_and_steps_in_flight():
    pool = FakePool()
    side, control = joined(pool)
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    admit(side, request("b", 8), [3, 4])
    step = side.dispatch(step_of(new={"b": ([3, 4], 0, 8)}))
    assert pool.reset_prefix_cache() and pool.resets == 1
    assert control.live() == {}
    side.returned(back(step.step))
    assert control.live() == {}, "a step from before the reset was offered after it"


def test_a_block_counts_when_every_rank_is_back():
    side, control = joined(ranks=2)
    admit(side, request("a", 8), [1, 2])
    step = side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    side.returned(back(step.step, ranks=1))
    assert control.live() == {}
    side.returned(back(step.step, ranks=2))
    assert set(control.live()) == {1, 2}


def test_what_rests_on_a_page_that_failed_is_not_offered():
    side, control = joined()
    admit(side, request("a", 8), [1, 2], local=4)
    step = side.dispatch(step_of(new={"a": ([1, 2], 4, 4)}))
    side.returned(back(step.step, invalid={1}))
    assert control.live() == {}


@pytest.mark.parametrize(
    "trait",
    [
        {"lora_request": object()},
        {"mm_features": [object()]},
        {"prompt_embeds": object()},
        {"prompt_token_ids": None},
        {"resumable": True},
        {"skip_reading_prefix_cache": True},
    ],
    ids=lambda trait: next(iter(trait)),
)
def test_requests_that_are_never_imported(trait: dict[str, object]):
    side, control = joined()
    control.found = 100
    assert side.match(request("a", 12, **trait), 0) == (0, False)
    assert "match" not in control.log


def test_salt_is_part_of_the_tenant():
    tenants = {}
    for name, base, salt in [
        ("a", "", None),
        ("b", "", "x"),
        ("c", "x", None),
        ("d", "1:x", None),
        ("e", "x", ""),
        ("f", "", "None"),
    ]:
        side, control = joined(tenant=base)
        admit(side, request(name, 8, cache_salt=salt), [1, 2])
        side.returned(back(side.dispatch(step_of(new={name: ([1, 2], 0, 8)})).step))
        tenants[base, salt or ""] = control.standing[1][3]
    assert len(set(tenants.values())) == 5


def test_inert_until_joined_and_when_a_rank_is_missing():
    side = SchedulerSide(BLOCK, 2)
    assert side.match(request("a", 8), 0) == (0, False)
    side.allocated(request("a", 8), [1, 2], 0)
    assert side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).loads == ()
    side.returned(back(1, ranks=2))
    side.finished("a")
    assert "1 of 2 ranks" in side.join({0: RankMemory(None, None)}, lambda _: pytest.fail("joined"))
    refused = {0: RankMemory(None, None), 1: RankMemory(None, None, refusal="no room")}
    assert side.join(refused, lambda _: pytest.fail("joined")) == "no room"


def test_producers_do_not_import_and_consumers_do_not_offer():
    side, control = joined(imports=False)
    control.found = 100
    assert side.match(request("a", 12), 0) == (0, False)
    side, control = joined(offers=False)
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    assert control.live() == {}


@pytest.mark.parametrize("broken", ["retire", "generations", "offer"])
def test_owner_side_failure_closes_everything_first(broken: str):
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    assert control.live()
    control.broken.add(broken)
    control.log.clear()
    with Guard("test", side.fail):
        admit(side, request("b", 8), [1, 3])
        side.returned(back(side.dispatch(step_of(new={"b": ([1, 3], 0, 8)})).step))
    assert control.log[-2:] == [broken, "fail_closed"], "something ran between the failure and the closing"
    assert control.live() == {}
    control.broken.clear()
    side.returned(back(side.plain_step().step))
    assert control.live() == {}
    admit(side, request("c", 8), [4, 5])
    side.returned(back(side.dispatch(step_of(new={"c": ([4, 5], 0, 8)})).step))
    assert set(control.live()) == {4, 5}, "the engine does not go on after a failure"


def test_pools_that_are_gone_are_told_to_the_workers_once():
    side, control = joined()
    control.gone = ["a", "b"]
    assert side.dispatch(step_of()).gone == ("a", "b")
    assert side.dispatch(step_of()).gone == ()
    control.gone = ["c"]
    assert side.plain_step().gone == ("c",), "though the step failed"


def test_far_pools_are_told_to_the_workers_once():
    side, control = joined()
    control.far = ["a", "b"]
    assert side.dispatch(step_of()).far == ("a", "b")
    assert side.dispatch(step_of()).far == ()


def test_pools_that_a_worker_cannot_map_are_avoided():
    side, control = joined(ranks=2)
    output = back(side.dispatch(step_of()).step, ranks=1)
    output.kv_connector_worker_meta = StepDone(1, 1, unreachable=("a", "b"))
    side.returned(output)
    assert control.log[-2:] == ["avoid a", "avoid b"], "whoever says so"


def test_outputs_of_other_connectors():
    side, control = joined()
    admit(side, request("a", 8), [1, 2])
    step = side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    for other in (None, object()):
        output = back(step.step)
        output.kv_connector_worker_meta = other
        side.returned(output)
    assert control.live() == {}
    side.returned(back(step.step))
    assert set(control.live()) == {1, 2}


def test_a_reset_before_the_market_is_joined():
    pool, side = FakePool(), SchedulerSide(BLOCK, 1)
    side.bind_pool(pool)
    assert pool.reset_prefix_cache() and pool.resets == 1
