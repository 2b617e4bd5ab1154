"""Replays requests on several engines at once, and makes result rows of the times."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bench.engines.process import EngineProcess
from bench.report import percentiles

Requests = list[dict[str, Any]]
SECONDS = 400  # a replay that takes longer counts as hanging
_seeds = itertools.count(1)


def fresh() -> int:
    """A seed that no other prompt of this run has."""
    return next(_seeds)


def replay(
    engines: Sequence[EngineProcess], plans: Sequence[Requests], window: int = 0, times: bool = False
) -> list[Requests]:
    """Have each engine run its own requests, all on one clock; returns what each one's `commands.replay` returns."""
    for engine, plan in zip(engines, plans, strict=True):
        engine.tell("prepare", requests=plan)
    for engine in engines:
        engine.answer(SECONDS)
    start = time.monotonic() + 0.1
    for engine in engines:
        engine.tell("replay", start=start, window=window, times=times)
    return [engine.answer(SECONDS)["requests"] for engine in engines]


def span(requests: Iterable[dict[str, Any]]) -> float:
    """Seconds from the first arrival to the last token."""
    requests = list(requests)
    return float(max(one["last"] for one in requests) - min(one["at"] for one in requests))


def first_tokens(requests: Iterable[dict[str, Any]]) -> list[float]:
    """Milliseconds to the first token, for each request."""
    return [1e3 * (one["first"] - one["at"]) for one in requests]


def per_token(requests: Iterable[dict[str, Any]]) -> list[float]:
    """Milliseconds per output token after the first, for each request."""
    return [1e3 * (one["last"] - one["first"]) / (one["count"] - 1) for one in requests if one["count"] > 1]


def gaps(requests: Iterable[dict[str, Any]], windows: Sequence[tuple[float, float]] | None = None) -> list[float]:
    """Milliseconds between two tokens of a request, for all requests; with `windows`, only gaps that overlap one."""
    found = []
    for one in requests:
        for before, after in itertools.pairwise(one["times"]):
            if windows is None or any(before < end and start < after for start, end in windows):
                found.append(1e3 * (after - before))
    return found


def spread(samples: Iterable[float]) -> dict[str, float]:
    """p10, p50, p90 and p99."""
    samples = list(samples)
    return percentiles(samples) | {"p99": round(float(np.percentile(samples, 99)), 3)}


def row(name: str, samples: Iterable[float], unit: str, ceiling: float | None = None, **more: Any) -> dict[str, Any]:
    """A row of a result file. `ratio`: ceiling over p50 for times, p50 over ceiling for rates, None without one."""
    found = spread(samples)
    ratio = None
    if ceiling is not None:
        ratio = ceiling / found["p50"] if unit in ("ms", "us", "s") else found["p50"] / ceiling
    return {
        "name": name,
        "bytes": 0,
        **found,
        "unit": unit,
        "ceiling": None if ceiling is None else round(ceiling, 3),
        "ratio": None if ratio is None else round(ratio, 4),
        **more,
    }


def show(found: dict[str, Any]) -> dict[str, Any]:
    """Print a row on one line, and return it."""
    more = {key: value for key, value in found.items() if key not in ("name", "bytes", "unit", "ceiling")}
    print(f"{found['name']:<64} {found['unit']:<9}" + "  ".join(f"{key} {value}" for key, value in more.items()))
    return found
