"""Copies of blocks that one would write without kvmarket: torch indexing, one copy per page, a batch of copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench import report
from bench.micro.peer import LAYERS, PAGE, SLOT
from bench.micro.suite import HERE, Row, Suite
from bench.micro.timing import Mark, handle, new_stream, single
from kvmarket.ways.gpu import copy_engine


def baselines(suite: Suite) -> Iterator[Row]:
    """Rows of the baselines: each copies a window of blocks from pages in place, one call at a time."""
    blocks, engine = suite.window, suite.engines["paged"]
    source = engine.source(suite.hits["in_place"])
    sources, places = (torch.tensor(ids[:blocks], device=HERE) for ids in (suite.sources, suite.places))
    there = [view.view(suite.slots, -1) for view in source.part_views()]
    here = [layer.view(suite.slots, -1) for layer in engine.layers]
    stream = new_stream()

    def index_select() -> Mark:
        for view, own in zip(there, here, strict=True):
            own.index_copy_(0, places, view.index_select(0, sources))
        return handle()

    def copy_each() -> Mark:
        for view, own in zip(there, here, strict=True):
            for a, b in zip(suite.sources[:blocks], suite.places[:blocks], strict=True):
                own[b].copy_(view[a], non_blocking=True)
        return handle()

    bases = np.array([[view.data_ptr(), own.data_ptr()] for view, own in zip(there, here, strict=True)], np.uint64)
    offsets = np.array([suite.sources[:blocks], suite.places[:blocks]], np.uint64) * np.uint64(PAGE)
    of, to = ((bases[:, side, None] + offsets[side]).ravel() for side in (0, 1))
    sizes = np.full(blocks * LAYERS, PAGE, np.uint64)

    def batch() -> Mark:
        with torch.cuda.stream(stream):
            copy_engine.copy_ranges(to, of, sizes, stream.cuda_stream if stream else 0)
            return handle()

    calls = {"index_select": index_select, "copy_per_page": copy_each, "memcpy_batch": batch}
    for name, call in calls.items():
        times = single(call, max(10, suite.repeats // 5))
        ceiling = report.percentiles(single(lambda: suite.ceiling(blocks * SLOT), suite.repeats // 5))["p50"]
        p = report.percentiles(times)
        yield {
            "name": f"baseline_{name}", "bytes": blocks * SLOT, "unit": "us", **p, "ceiling": ceiling,
            "ratio": round(ceiling / p["p50"], 4), "GBps": round(blocks * SLOT / p["p50"] / 1e3, 1),
        }  # fmt: skip
