"""Commands that the benchmarks give to engine processes: each public function is one; its first argument is the engine.

See bench/engines/engine.py. A prompt is given as parts, ``[seed, tokens]`` each, from which every process can make it.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from typing import Any

import numpy as np

from bench.engines.engine import Engine, streamed

ANSWER = 4  # tokens in an answer of which only the first one is timed
FIRST, LAST = 1000, 120_000  # of the token ids that occur in prompts
Parts = list[list[int]]
Asked = list[dict[str, Any]]
_prepared: dict[int, tuple[Asked, list[list[int]]]] = {}


@functools.lru_cache(maxsize=64)
def _part(seed: int, tokens: int) -> list[int]:
    return list(np.random.default_rng(seed).integers(FIRST, LAST, tokens).tolist())


def prompt_of(parts: Parts) -> list[int]:
    """The tokens of a prompt: for each part so many random ones, the same in every process for the same seed."""
    return [token for seed, count in parts for token in _part(seed, count)]


@functools.cache
def _spans(engine: Engine) -> Any:
    from bench.engines.spans import watch

    return watch(engine.llm)


def ask(engine: Engine, parts: Parts, trace: bool = False) -> dict[str, Any]:
    """Stream an answer of ANSWER tokens to one prompt.

    Returns ``ms`` until the first token, that token as ``first``, and how many prompt tokens were ``cached``; with
    `trace` also ``spans``, where the time went (see bench/engines/spans.py).
    """
    prompt, core = prompt_of(parts), engine.llm.llm_engine
    spans = _spans(engine) if trace else None
    if spans is not None:
        spans.start()
    start = time.perf_counter()
    core.add_request(str(start), {"prompt_token_ids": prompt}, streamed(ANSWER))
    while not (outputs := [output for output in core.step() if output.outputs[0].token_ids]):
        pass
    answer: dict[str, Any] = {"ms": 1e3 * (time.perf_counter() - start)}
    if spans is not None:
        answer["spans"] = spans.stop()
    while core.has_unfinished_requests():
        core.step()
    return {**answer, "first": outputs[0].outputs[0].token_ids[0], "cached": outputs[0].num_cached_tokens}


def prepare(engine: Engine, requests: Asked) -> dict[str, Any]:
    """Make the prompts of the next `replay`. A request has ``at`` (s after its start), ``parts`` and ``tokens``."""
    requests = sorted(requests, key=lambda request: request["at"])
    _prepared[id(engine)] = requests, [prompt_of(request["parts"]) for request in requests]
    return {}


def replay(engine: Engine, start: float, window: int = 0, times: bool = False) -> dict[str, Any]:
    """Run the prepared requests at their times after `start`, on ``time.monotonic``, which all processes share.

    With `window` at most so many run at a time, in order. Returns one entry per request in order of arrival, times in
    seconds after `start`: ``at`` (when it came), ``first`` and ``last`` token, the ``count`` of tokens, the prompt
    tokens ``cached``, and with `times` the time of every token.
    """
    core = engine.llm.llm_engine
    requests, prompts = _prepared.pop(id(engine))
    waiting = deque(enumerate(requests))
    running: dict[str, dict[str, Any]] = {}
    done: list[dict[str, Any]] = [{} for _ in requests]
    while waiting or running:
        now = time.monotonic() - start
        while waiting and waiting[0][1]["at"] <= now and (not window or len(running) < window):
            at, request = waiting.popleft()
            core.add_request(str(at), {"prompt_token_ids": prompts[at]}, streamed(request["tokens"]))
            running[str(at)] = done[at] = {"at": now if window else request["at"], "cached": 0, "count": 0, "times": []}
        if not running:
            time.sleep(min(0.001, max(0.0, waiting[0][1]["at"] - now)))
            continue
        for output in core.step():
            record, got = running[output.request_id], len(output.outputs[0].token_ids)
            if got:
                record["cached"] = output.num_cached_tokens or record["cached"]
                record["count"] += got
                record["times"].append(time.monotonic() - start)
            if output.finished:
                running.pop(output.request_id)
    for record in done:
        record |= {"first": record["times"][0], "last": record["times"][-1]}
        if not times:
            del record["times"]
    return {"requests": done}
