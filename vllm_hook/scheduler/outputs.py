"""Reads vLLM's ``SchedulerOutput`` of a step that is about to be dispatched: its new pages and completed blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_hook.scheduler.drafts import open_block
from vllm_hook.scheduler.requests import RequestState


def new_pages(output: Any, states: Mapping[str, RequestState]) -> list[int]:
    """The pages that this step's requests were given since their last step, each once; adds them to the states."""
    fresh: list[int] = []
    for new in output.scheduled_new_reqs:
        state = states.get(new.req_id)
        fresh += state.whole(new.block_ids[0]) if state else new.block_ids[0]
    cached = output.scheduled_cached_reqs
    for request_id, groups in zip(cached.req_ids, cached.new_block_ids, strict=True):
        if groups is None:
            continue
        state = states.get(request_id)
        if state is None:
            fresh += groups[0]
        elif request_id in cached.resumed_req_ids:
            fresh += state.whole(groups[0])
        else:
            fresh += state.more(groups[0])
    return list(dict.fromkeys(fresh))


def completed(
    output: Any, states: Mapping[str, RequestState], block_size: int, speculates: bool
) -> Iterator[tuple[RequestState, int, list[int]]]:
    """The blocks that become whole with the tokens scheduled in this step: (state, first block, pages) per request.

    Where the engine `speculates` they are the blocks that may become whole (see drafts.py). Requests without a state,
    or with a refusal, are left out.
    """
    cached = output.scheduled_cached_reqs
    computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    for request_id, scheduled in output.num_scheduled_tokens.items():
        state = states.get(request_id)
        if state is None or state.refusal:
            continue
        first = computed[request_id] // block_size
        if speculates:
            first = open_block(state, first)
        end = (computed[request_id] + scheduled) // block_size
        if end > first:
            yield state, first, state.slots[first:end]
