"""Two processes fetch from each other at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.micro.peer import BLOCK, SLOT
from bench.micro.suite import Row, Suite


def both_ways(suite: Suite, seconds: float) -> Iterator[Row]:
    """Rows of the sum of both rates, while the processes fetch a window of blocks from each other, again and again."""
    window = suite.window
    nbytes, ceiling = window * SLOT, 0.0
    for kind in ("contiguous", "paged"):
        engine, peer = suite.engines[kind], suite.peers[kind]
        theirs = suite.offered["in_place" if kind == "paged" else kind][: window * BLOCK * 4]
        ours = suite.new_tokens(window)
        engine.market.retire(suite.sources[-window:])  # a fetch has overwritten these slots
        engine.market.publish(np.frombuffer(ours, np.int32), suite.sources[-window:])
        ids = suite.sources[-2 * window : -window]
        rates: dict[str, Any] = {}
        calls: list[tuple[str, str, Any]] = [("fetch", "fetch_for", ids)]
        if not ceiling:
            calls.append(("ceiling", "copy_for", window))
        for name, method, argument in calls:
            start = time.monotonic() + 1.0
            peer.tell(method, seconds, ours, argument, start)
            mine = getattr(engine, method)(seconds, theirs, argument, start)
            both = [np.percentile(times, [90, 50, 10]) for times in (mine, peer.answer())]
            rates[name] = sum(nbytes / each / 1e9 for each in both)  # p10, p50, p90 of the sum of both rates
        ceiling = float(rates["ceiling"][1]) if "ceiling" in rates else ceiling
        low, middle, high = (round(float(each), 1) for each in rates["fetch"])
        yield {
            "name": "both_ways" if kind == "contiguous" else "both_ways_in_place", "bytes": 2 * nbytes,
            "unit": "GB/s", "p10": low, "p50": middle, "p90": high, "ceiling": round(ceiling, 1),
            "ratio": round(middle / ceiling, 4),
        }  # fmt: skip
