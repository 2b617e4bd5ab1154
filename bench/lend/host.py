"""How fast blocks of engines on a GPU go to a lender's memory of the host, and come back.

    python -m bench.lend.host                       prints a table
    python -m bench.lend.host --write h200x1        also writes bench/results/h200x1-host.json

Needs an NVIDIA GPU. Two engines of one process, with blocks of the shape of Llama-3.1-8B (2 MiB in 64 ranges of 32
KiB), and ``kvmarket lend --host-gb``. The first engine publishes, the lender copies, the first engine overwrites its
blocks, the second one fetches. `lend`: from the first offer until a match finds the last block at the lender. `map`:
from the first fetch until the memory is mapped, which a thread does; `gap`: the longest time that one launch of a small
kernel took meanwhile, and its ceiling before. `fetch`: by the default choice, and by each way; the ceiling is the copy
engine from pinned memory of this process, one contiguous range of as many bytes. A byte counts once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import kvmarket
from bench import report
from bench.lend.take_back import wait
from bench.registry.joined import BLOCK, FINGERPRINT, market_address, prompt
from bench.registry.visible import show
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from kvmarket.ways.choice import Forced

SIZES = (4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30)
BLOCK_BYTES = 2 << 20
SLOTS = SIZES[-1] // BLOCK_BYTES
REPEATS = 15


class Engine:
    """An engine on the GPU: 32 layers of keys and values, bf16, 8 heads of 128."""

    def __init__(self, address: str) -> None:
        """Join with room for the largest size."""
        shape = (SLOTS, 2, BLOCK, 8, 128)
        self.layers = [torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(32)]
        self.market = kvmarket.connect(kvmarket.PagedCache(self.layers, block_size=BLOCK), FINGERPRINT, address=address)

    def fetched(self, hit: kvmarket.Hit, blocks: int) -> float:
        """Fetch the first blocks of the hit; seconds, or 0 if not all were valid."""
        order = np.random.default_rng(blocks).permutation(SLOTS)[:blocks]
        self.market.retire(order)
        torch.cuda.synchronize()
        start = time.perf_counter()
        valid = self.market.fetch(hit, order).wait()
        return time.perf_counter() - start if valid == blocks else 0.0


class Gaps:
    """A thread that launches a small kernel again and again; `longest` is the longest time that one took."""

    def __init__(self) -> None:
        """Start the thread."""
        self.longest, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        one = torch.zeros(1, device="cuda")
        while not self._stop.is_set():
            start = time.perf_counter()
            one.add_(1)
            torch.cuda.current_stream().synchronize()
            self.longest = max(self.longest, time.perf_counter() - start)

    def end(self) -> float:
        """End the thread; milliseconds of the longest launch."""
        self._stop.set()
        self._thread.join()
        return 1e3 * self.longest


def row(name: str, nbytes: int, samples: list[float], unit: str, ceiling: float) -> dict[str, Any]:
    """One row of the results."""
    found = report.percentiles(samples)
    ratio = round(found["p50"] / ceiling, 3) if ceiling else 0.0
    return {"name": name, "bytes": nbytes, **found, "unit": unit, "ceiling": round(ceiling, 3), "ratio": ratio}


def copied(nbytes: int) -> float:
    """GB/s of the copy engine from pinned memory of the host, median."""
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(nbytes, dtype=torch.uint8, device="cuda")

    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return nbytes / float(np.median([once() for _ in range(REPEATS)])) / 1e9


def lent(reads: Engine, tokens: np.ndarray) -> Callable[[], bool]:
    """Whether a match finds all blocks of these tokens at a lender."""

    def found() -> bool:
        hit = reads.market.match(tokens)
        return hit.blocks == SLOTS and all(pool.far for pool in hit.pools.values())

    return found


def measure() -> list[dict[str, Any]]:
    """Lend, map and fetch; returns the rows."""
    rows, tokens = [], prompt(SLOTS, 3)
    with market_address() as address:
        computes, reads = Engine(address), Engine(address)
        for layer in computes.layers:
            layer.view(torch.int16).random_(-(2**15), 2**15)
        command = [sys.executable, "-m", "kvmarket.cli", "lend", "--address", address, "--host-gb", "2.2"]
        lender = subprocess.Popen(command)
        try:
            wait(lambda: any(member.lends for member in ask_status(Address(address)).members))
            time.sleep(1)
            start = time.perf_counter()
            computes.market.publish(tokens, list(range(SLOTS)))
            space = reads.market._control._client._replica.space
            wait(lambda: sum(pool.standing().size for pool in space.pools.values() if pool.record.far) == SLOTS)
            seconds = time.perf_counter() - start
            rows.append(row("lend", SIZES[-1], [SIZES[-1] / seconds / 1e9], "GB/s", copied(SIZES[-1])))
            computes.market.retire(range(SLOTS))
            wait(lent(reads, tokens))
            rows += mapped(reads, tokens)
            rows += fetched(reads, reads.market.match(tokens))
            for mine, theirs in zip(reads.layers, computes.layers, strict=True):
                order = np.random.default_rng(SLOTS).permutation(SLOTS)
                assert torch.equal(mine.view(torch.int16)[order], theirs.view(torch.int16)), "the bytes are right"
        finally:
            lender.terminate()
            lender.wait()
            reads.market.close()
            computes.market.close()
    return rows


def mapped(reads: Engine, tokens: np.ndarray) -> list[dict[str, Any]]:
    """Map the lender's memory; how long it took, and how long others waited for the driver."""
    gaps = Gaps()
    time.sleep(1)
    before, gaps = gaps.end(), Gaps()
    start = time.perf_counter()
    wait(lambda: lent(reads, tokens)() and reads.fetched(reads.market.match(tokens), SLOTS) > 0)
    seconds = time.perf_counter() - start
    return [
        row("map", SIZES[-1], [seconds], "s", 0.0),
        row("gap while it is mapped", SIZES[-1], [gaps.end()], "ms", before),
    ]


def fetched(reads: Engine, hit: kvmarket.Hit) -> list[dict[str, Any]]:
    """Fetch each size by each way."""
    rows = []
    for nbytes in SIZES:
        ceiling, blocks = copied(nbytes), nbytes // BLOCK_BYTES
        for way in ("", "pull", "staged"):
            reads.market._data.mover.ways.choice = Forced(way) if way else None
            reads.fetched(hit, blocks)
            rates = [nbytes / reads.fetched(hit, blocks) / 1e9 for _ in range(REPEATS)]
            rows.append(row(f"fetch, {way or 'default'}, {nbytes >> 20} MiB", nbytes, rates, "GB/s", ceiling))
    return rows


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-host.json")
    options = parser.parse_args()
    rows = measure()
    show(rows)
    if options.write:
        report.write(options.write, "host", rows, ["torch", "triton"], **report.facts([0]), repeats=REPEATS)


if __name__ == "__main__":
    main()
