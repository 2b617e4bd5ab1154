"""Pack and scatter within one GPU, beside a contiguous copy of as many bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

from bench import report
from bench.micro.peer import SLOT, layers_of
from bench.micro.suite import HERE, Row
from bench.micro.timing import GPUS, Mark
from kvmarket import PagedCache
from kvmarket.kernels import copy_blocks
from kvmarket.layout.paged import SlotArray


def on_device(call: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each call on the device, measured by events."""
    times = []
    for _ in range(count + 3):
        start, end = Mark(), Mark()
        if GPUS:
            torch.cuda._sleep(200_000)  # keeps the device busy until everything is launched
        start.record()
        call()
        end.record()
        end.wait()
        times.append(start.until(end) * 1e3)
    return times[3:]


def local_rows(repeats: int, blocks: tuple[int, ...]) -> Iterator[Row]:
    """Rows of pack and scatter, with and without checksums, random slots. `bytes` is payload, counted once."""
    slots = 2 * max(blocks)
    paged = PagedCache(layers_of("paged", slots, HERE), block_size=16).slot_array()
    layout = paged.layout.as_packed(slots)
    bundle = SlotArray(layout, [torch.randint(0, 256, (slots * SLOT,), dtype=torch.uint8, device=HERE)])
    chance = random.Random(5)
    for count in blocks:
        ids, places = (torch.tensor(chance.sample(range(slots), count), device=HERE) for _ in range(2))
        sums, half = torch.zeros(count, dtype=torch.int64, device=HERE), bundle.segments[0][count * SLOT :]
        calls: dict[str, Callable[[], object]] = {
            "pack": lambda: copy_blocks(paged, ids, bundle, places),  # noqa: B023
            "scatter": lambda: copy_blocks(bundle, ids, paged, places),  # noqa: B023
            "pack_checksum": lambda: copy_blocks(paged, ids, bundle, places, sums=sums),  # noqa: B023
            "scatter_checksum": lambda: copy_blocks(bundle, ids, paged, places, sums=sums),  # noqa: B023
        }
        for name, call in calls.items():
            times, ceilings = [], []
            for _ in range(5):
                times += on_device(call, repeats // 5)
                contiguous = lambda: bundle.segments[0][: count * SLOT].copy_(half[: count * SLOT])  # noqa: B023, E731
                ceilings += on_device(contiguous, repeats // 5)
            p, ceiling = report.percentiles(times), report.percentiles(ceilings)["p50"]
            yield {
                "name": name, "bytes": count * SLOT, "unit": "us", **p, "ceiling": ceiling,
                "ratio": round(ceiling / p["p50"], 4), "GBps": round(count * SLOT / p["p50"] / 1e3, 1),
            }  # fmt: skip
