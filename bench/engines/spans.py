"""Where the time of one request goes: spans around calls of vLLM and of the hook; a span excludes its inner spans.

Use it inside an engine process. A span costs some 1 us per call.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

PHASES = ("before the launch", "load under way", "after the load")
REST = "vLLM's front end and the rest"


class Spans:
    """Seconds by phase and span. A phase ends when the worker launches a load, or sees that a load has ended."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Reset all times: a request begins, in the first phase."""
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._phase = 0
        self._open = [REST]
        self._last = self._clock()

    def next_phase(self, phase: int) -> None:
        """Begin this phase, unless a later one has begun."""
        self._account()
        self._phase = max(self._phase, phase)

    def stop(self) -> dict[str, dict[str, dict[str, float]]]:
        """By phase and span: the `ms` in the span without its inner spans, and the number of `calls`."""
        self._account()
        found: dict[str, dict[str, dict[str, float]]] = {phase: {} for phase in PHASES}
        for (phase, span), seconds in self.seconds.items():
            found[phase][span] = {"ms": round(1e3 * seconds, 4), "calls": self.calls[phase, span]}
        return found

    def wrap(self, owner: Any, method: str, span: str, after: Callable[[Any, Any], None] | None = None) -> None:
        """Put a span around `owner.method`; `after` is then called with the first argument and the result."""
        call = getattr(owner, method)

        @functools.wraps(call)
        def spanned(*args: Any, **kwargs: Any) -> Any:
            self._account()
            self._open.append(span)
            self.calls[PHASES[self._phase], span] += 1
            try:
                result = call(*args, **kwargs)
            finally:
                self._account()
                self._open.pop()
            if after is not None:
                after(args[0] if args else None, result)
            return result

        setattr(owner, method, spanned)

    def _account(self) -> None:
        now = self._clock()
        self.seconds[PHASES[self._phase], self._open[-1]] += now - self._last
        self._last = now


def watch(llm: Any) -> Spans:
    """Put spans around the calls from a request's arrival to its first token. The engine must run in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    spans = Spans()
    core = llm.llm_engine.engine_core.engine_core
    scheduler, pool = core.scheduler, core.scheduler.kv_cache_manager.block_pool
    runner = core.model_executor.driver_worker.worker.model_runner
    for owner, method, span in (
        (core, "step_fn", "engine step, the rest (waits for the device)"),
        (core, "preprocess_add_request", "arrival: request made, blocks hashed"),
        (scheduler, "schedule", "schedule"),
        (scheduler, "update_from_output", "update from output"),
        (scheduler.kv_cache_manager, "get_computed_blocks", "own prefix cache looked up"),
        (scheduler.kv_cache_manager, "allocate_slots", "pages allocated"),
        (pool, "get_new_blocks", "pages taken, old hashes evicted"),
        (pool, "cache_full_blocks", "pages cached by hash"),
        (runner, "execute_model", "forward launched"),
        (runner, "sample_tokens", "sampled"),
    ):
        spans.wrap(owner, method, span)
    if not has_kv_transfer_group():
        return spans
    for method, span in (
        ("get_num_new_matched_tokens", "hook: match"),
        ("update_state_after_alloc", "hook: load planned, pages retired"),
        ("build_connector_meta", "hook: step dispatched"),
        ("update_connector_output", "hook: step returned, blocks offered"),
    ):
        spans.wrap(scheduler.connector, method, span)
    worker = get_kv_transfer_group()
    loading = [False]

    def bound(metadata: Any, _: Any) -> None:
        loading[0] = bool(getattr(metadata, "loads", ()))

    def launched(*_: Any) -> None:
        if loading[0]:
            spans.next_phase(1)

    def polled(_: Any, finished: Any) -> None:
        if finished[1]:
            spans.next_phase(2)

    spans.wrap(worker, "bind_connector_metadata", "hook: worker", bound)
    spans.wrap(worker, "start_load_kv", "hook: load launched", launched)
    if (ahead := scheduler.connector._scheduler._loads.worker) is not None:
        spans.wrap(ahead, "start_now", "hook: load launched", lambda *_: spans.next_phase(1))
        spans.wrap(ahead, "landed", "hook: load polled", lambda _, landed: spans.next_phase(2) if landed else None)
    spans.wrap(worker, "get_finished", "hook: load polled", polled)
    return spans
