"""What an output of vLLM's scheduler says of a step that is about to be dispatched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_hook.scheduler.drafts import open_block
from vllm_hook.scheduler.requests import Track


def new_pages(output: Any, tracks: Mapping[str, Track]) -> list[int]:
    """The pages that this step's requests got and that were not seen before; the tracks know them from now on."""
    fresh: list[int] = []
    for new in output.scheduled_new_reqs:
        track = tracks.get(new.req_id)
        fresh += track.whole(new.block_ids[0]) if track else new.block_ids[0]
    cached = output.scheduled_cached_reqs
    for request_id, groups in zip(cached.req_ids, cached.new_block_ids, strict=True):
        if groups is None:
            continue
        track = tracks.get(request_id)
        if track is None:
            fresh += groups[0]
        elif request_id in cached.resumed_req_ids:
            fresh += track.whole(groups[0])
        else:
            fresh += track.more(groups[0])
    return list(dict.fromkeys(fresh))


def completed(
    output: Any, tracks: Mapping[str, Track], block_size: int, speculates: bool
) -> Iterator[tuple[Track, int, list[int]]]:
    """The blocks that become whole with the tokens scheduled in this step.

    Per request its track, the first of these blocks, and their pages. Where the engine `speculates`, the blocks that
    may become whole (see drafts.py).
    """
    cached = output.scheduled_cached_reqs
    computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    for request_id, scheduled in output.num_scheduled_tokens.items():
        track = tracks.get(request_id)
        if track is None or track.refusal:
            continue
        first = computed[request_id] // block_size
        if speculates:
            first = open_block(track, first)
        end = (computed[request_id] + scheduled) // block_size
        if end > first:
            yield track, first, track.slots[first:end]
