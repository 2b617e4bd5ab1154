"""Speculative decoding: which of the blocks that a step wrote are final, with no rejected draft in them.

A step writes the KV of a request's last token and of the draft tokens after it; later steps overwrite the KV of
rejected drafts. With asynchronous scheduling vLLM dispatches a step as if all drafts of the step before were accepted,
so the number of computed tokens is exact only when all steps of the request are back. A request therefore has an
*open* block: the first block that no returned step has made final. Each step may complete blocks from there on.
"""

from __future__ import annotations

from vllm_hook.scheduler.requests import RequestState
from vllm_hook.scheduler.steps import Written

WITHOUT_KV = ("ngram", "ngram_gpu", "suffix", "medusa")  # drafting methods without a KV cache of their own


def open_block(state: RequestState, first: int) -> int:
    """The first block that a step may complete; `first` is the one that it starts in if no draft is rejected."""
    state.open = first if state.open is None else min(state.open, first)
    return state.open


def sure_part(written: Written, block_size: int) -> Written:
    """The blocks of a returned step that have only accepted tokens and were not returned by an earlier call.

    Call it after vLLM has appended the accepted tokens to the request: all tokens but the last, whose KV no step has
    computed yet, are final. Advances the open block.
    """
    state, first = written.state, written.first
    end = first + len(written.slots)
    sure = max(first, min(end, (len(state.request.all_token_ids) - 1) // block_size))
    start = first
    if state.open is not None and state.slots[first:end] == written.slots:  # else the request was preempted meanwhile
        start = min(max(first, state.open), sure)
        state.open = max(state.open, sure)
    part = slice(start - first, sure - first)
    return Written(state, start, written.slots[part], written.generations[part])
