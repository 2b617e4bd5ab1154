"""Requests whose blocks depend on more than their tokens."""

from __future__ import annotations

import pytest

from kvmarket import counters
from tests.vllm_hook.scheduler.fakes import admit, back, joined, request, step_of
from vllm_hook.scheduler.requests import NO_TOKENS, state_of


@pytest.mark.parametrize(
    ("trait", "reason"),
    [
        ({"lora_request": object()}, "LoRA"),
        ({"mm_features": [object()]}, "multimodal"),
        ({"prompt_embeds": object()}, "prompt embeds"),
        ({"prompt_token_ids": None}, "prompt embeds"),
        ({"resumable": True}, "streaming input"),
    ],
)
def test_requests_whose_blocks_are_of_more_than_tokens_are_never_offered(trait: dict[str, object], reason: str):
    side, control = joined()
    refused = f"vllm_import_refused{{{reason}}}"
    before = counters.snapshot().get(refused, 0)
    admit(side, request("a", 8, **trait), [1, 2])
    side.returned(back(side.dispatch(step_of(new={"a": ([1, 2], 0, 8)})).step))
    assert control.live() == {} and counters.snapshot()[refused] == before + 1
    admit(side, request("b", 8), [3, 4])
    side.returned(back(side.dispatch(step_of(new={"b": ([3, 4], 0, 8)})).step))
    assert set(control.live()) == {3, 4}, "others pay for it"


def test_tokens_of_prompt_and_answer():
    one = request("a", 10)
    state = state_of(one, "")
    assert state.tokens(4).tolist() == [0, 1, 2, 3]
    assert state.tokens(10).tolist() == list(range(10))
    assert state.tokens(12).tolist() == list(range(10)), "it has no more"
    one.all_token_ids += [7, 8, 9]
    assert state.tokens(12).tolist() == [*range(10), 7, 8]
    late = state_of(one, "")
    assert late.tokens(12).tolist() == [*range(10), 7, 8], "asked first when it has answered already"


def test_pages_are_new_once():
    state = state_of(request("a", 10), "")
    assert state.whole([3, 4]) == [3, 4] and state.whole([3, 4]) == []
    assert state.more([5]) == [5] and state.whole([3, 4, 5, 6]) == [6]
    state.restart(1)
    assert state.slots == [] and state.whole([7, 8, 9]) == [8, 9], "the first one is a hit in its own cache"


def test_a_request_that_is_refused_has_no_tokens_to_share():
    state = state_of(request("a", 10), "")
    assert len(state.tokens(8)) == 8
    state.refusal = "prefix cache reset"
    assert len(state.tokens(8)) == len(state.tokens(4)) == 0
    late = state_of(one := request("b", 4), "")
    assert len(late.tokens(4)) == 4
    one.all_token_ids += [4, -1]
    assert len(late.tokens(6)) == 0 and late.refusal == NO_TOKENS
    assert len(late.tokens(4)) == 0
