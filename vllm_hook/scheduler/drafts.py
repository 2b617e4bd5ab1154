"""Speculative decoding: which of the blocks that a step wrote are sure, whatever drafts were rejected.

A step writes the KV of a request's last token and of the drafts behind it; later steps overwrite that of rejected ones.
How many tokens a request has computed is known exactly only when its steps are back: with asynchronous scheduling a
step is dispatched as if all drafts of the one before were accepted. So a request has an *open* block, the first one
that no step that is back has made sure, and every step may complete blocks from there on.
"""

from __future__ import annotations

from vllm_hook.scheduler.requests import RequestState
from vllm_hook.scheduler.steps import Written

WITHOUT_KV = ("ngram", "ngram_gpu", "suffix", "medusa")  # methods of drafting that keep no KV cache of their own


def open_block(state: RequestState, first: int) -> int:
    """The first block that a step may complete, which is scheduled from block `first` on if no draft is rejected."""
    state.open = first if state.open is None else min(state.open, first)
    return state.open


def sure_part(written: Written, block_size: int) -> Written:
    """Of blocks whose step is back, those that are news and whose every token was accepted before it was written.

    Call it when the request has the tokens that the step accepted: all but the last one, which nothing has computed
    yet, are sure. Moves the open block on.
    """
    state, first = written.state, written.first
    end = first + len(written.slots)
    sure = max(first, min(end, (len(state.request.all_token_ids) - 1) // block_size))
    start = first
    if state.open is not None and state.slots[first:end] == written.slots:  # else it was preempted meanwhile
        start = min(max(first, state.open), sure)
        state.open = max(state.open, sure)
    part = slice(start - first, sure - first)
    return Written(state, start, written.slots[part], written.generations[part])
