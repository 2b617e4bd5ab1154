"""By how much a model on the reader's or the owner's GPU gets slower while fetches run without a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench import report
from bench.micro.peer import SLOT, WARM_UP
from bench.micro.suite import Row, Suite
from bench.micro.timing import new_stream


def co_runners(suite: Suite, seconds: float) -> Iterator[Row]:
    """Rows of step times of a model on the reader or the owner, alone and beside each kind of fetch of a window."""
    kinds: list[tuple[str, str, str | None, int | None]] = [
        ("nothing", "paged", None, None), ("contiguous_copy", "contiguous", None, None),
        ("contiguous", "contiguous", "copy", None), ("packed_staged", "packed", "staged", None),
        *((f"pull_{n}", "in_place", "pull", n) for n in (4, 8, 10, 12, 16, 24, 132)),
    ]  # fmt: skip
    for model in ("decode", "prefill"):
        for side in ("reader", "owner"):
            alone = 0.0
            for name, hit, way, programs in kinds:
                steps, rate = _co_run(suite, model, side, seconds, name, hit, way, programs)
                p = report.percentiles(steps)
                alone = alone or p["p50"]
                yield {
                    "name": f"co_runner_{side}_{model}", "fetch": name, "programs": programs,
                    "bytes": suite.window * SLOT, "unit": "ms", **p, "ceiling": alone,
                    "ratio": round(alone / p["p50"], 4),
                    "slower_percent": round(100 * (p["p50"] / alone - 1), 2), "GBps": rate,
                }  # fmt: skip


def _co_run(
    suite: Suite, model: str, side: str, seconds: float, name: str, hit: str, way: str | None, programs: int | None
) -> tuple[list[float], float]:
    kind = "contiguous" if hit == "contiguous" else "paged"
    engine, found = suite.engines[kind], suite.hits.get(hit, suite.hits["in_place"])
    engine.force(way, programs)
    stop, times = threading.Event(), []
    runner: Any = suite.engines["paged"] if side == "reader" else suite.peers["paged"]
    runner.co_run(model, 0.0, 0.0) if side == "reader" else runner.ask("co_run", model, 0.0, 0.0)  # captures the graph
    start_at = time.monotonic() + 0.1

    def traffic() -> None:
        places = suite.places[: suite.window]
        stream = new_stream()  # of this thread: a fetch waits for its caller's stream
        time.sleep(max(0.0, start_at - time.monotonic()))
        with torch.cuda.stream(stream):
            while not stop.is_set():
                start = time.perf_counter()
                if name == "contiguous_copy":
                    suite.ceiling(suite.window * SLOT).wait()
                else:
                    engine.market.fetch(found, places).wait()
                times.append(time.perf_counter() - start)

    arguments = (model, seconds, start_at)
    thread = threading.Thread(target=traffic)
    if name != "nothing":
        thread.start()
    steps = runner.co_run(*arguments) if side == "reader" else runner.ask("co_run", *arguments)
    stop.set()
    if name != "nothing":
        thread.join()
    engine.force(None)
    return steps[WARM_UP:], round(suite.window * SLOT / float(np.median(times)) / 1e9, 1) if times else 0.0
