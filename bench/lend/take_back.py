"""How soon lent memory is dead, and free for others, when all of it is taken back under load.

    python -m bench.lend.take_back --gb 4 --times 20                  prints a table
    python -m bench.lend.take_back --gb 4 --times 100 --write laptop  also writes bench/results/laptop-take-back.json
    python -m bench.lend.take_back --gb 40 --gpu 0 --times 100        of a GPU, where the engine's cache lies too

A `kvmarket lend` process lends memory of the host, or of a GPU, and is full; a reader fetches from all its segments
without a pause. The lender gets SIGUSR1. `dead`: the time until not one offer of the lender is valid any more. `free`:
the time until /dev/shm, or the GPU, has as much room as without lent memory, but for 1 % of it, measured some seconds
after a first time.
Then SIGUSR2, and the memory is filled again. The ceiling of `dead` is one look of the reader at all generations,
measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import torch

import kvmarket
from bench import report
from bench.registry.joined import BLOCK, FINGERPRINT, market_address, prompt
from bench.registry.visible import show
from kvmarket.cli.top import ask_status
from kvmarket.pool import GenerationReader
from kvmarket.registry.protocol.address import Address

DEPTH = 64  # blocks of a prompt
GOALS = {"dead": 1.0, "free": 50.0}  # ms
GIVE_UP = 30.0
SETTLED = 3.0  # seconds after which all memory is free that will be


class Node:
    """An engine that fills a lender, and reads from it."""

    def __init__(self, address: str, gb: float, gpu: int | None = None) -> None:
        """Join with a cache of an eighth of what is lent, in blocks of 256 KiB; start the lender."""
        torch.set_num_threads(1)
        self.address, self.nbytes, self.gpu = address, int(gb * 1e9), gpu
        shape = (max(4 * DEPTH, self.nbytes // 8 >> 18), 2, BLOCK, 64)
        device = "cpu" if gpu is None else f"cuda:{gpu}"
        self.layers = [torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(32)]
        self.cache = kvmarket.PagedCache(self.layers, block_size=BLOCK)
        self.market = kvmarket.connect(self.cache, FINGERPRINT, address=address)
        memory = ("--host-gb", str(gb)) if gpu is None else ("--gpu", str(gpu), "--gb", str(gb))
        self.lender = subprocess.Popen([sys.executable, "-m", "kvmarket.cli", "lend", "--address", address, *memory])
        wait(lambda: any(member.lends for member in ask_status(Address(address)).members))
        self._prompts = self._slots = 0
        for _, hit in self.fill():  # the first fetches allocate what later ones use again
            self.market.fetch(hit, list(range(hit.blocks))).wait()
        self.lender.send_signal(signal.SIGUSR1)
        time.sleep(SETTLED)
        self.room = self.free_room() - max(1 << 20, self.nbytes // 100)  # a GPU's context may grow by some MB
        self.lender.send_signal(signal.SIGUSR2)

    def fill(self) -> list[tuple[np.ndarray, kvmarket.Hit]]:
        """Publish prompts until the lender has nearly all that fit; returns the prompts with hits of its offers."""
        tokens: list[np.ndarray] = []
        most, at_once = self.nbytes // self.cache.slot_bytes // DEPTH, self.cache.slots // DEPTH // 2
        while len(tokens) < most:
            new = [prompt(DEPTH, 7, self._prompts + number) for number in range(min(at_once, most - len(tokens)))]
            for each in new:
                slots = [(self._slots + number) % self.cache.slots for number in range(DEPTH)]
                self.market.retire(slots)
                self.layers[0][slots] = self._prompts
                self.market.publish(each, slots)
                self._prompts, self._slots = self._prompts + 1, self._slots + DEPTH
            wait(lambda new=new: all(map(self._lent, new)))
            tokens += new
        self.market.retire(range(self.cache.slots))
        hits = [(each, self.market.match(each)) for each in tokens]
        return [(each, hit) for each, hit in hits if hit.blocks]

    def _lent(self, tokens: np.ndarray) -> bool:
        pools = self.market.match(tokens).pools.values()
        return bool(pools) and all(pool.lent for pool in pools)

    def free_room(self) -> int:
        """Bytes that /dev/shm, or the GPU, has room for."""
        if self.gpu is not None:
            return int(torch.cuda.mem_get_info(self.gpu)[0])
        room = os.statvfs("/dev/shm")
        return room.f_bavail * room.f_frsize

    def readers(self, hits: list[tuple[np.ndarray, kvmarket.Hit]]) -> list[tuple[GenerationReader, Any]]:
        """The generations of the lender's pools, each with its runs of offers."""
        found = self.market._control._peers._peers
        return [(found[run.pool].generations, run) for _, hit in hits for run in hit.runs]


def wait(condition: Any) -> None:
    """Wait until `condition()`. Raises TimeoutError."""
    end = time.monotonic() + GIVE_UP
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the lender does not keep what is offered, or does not give memory back")
        time.sleep(0.001)


def once(node: Node) -> tuple[float, float, float, int]:
    """Fill the lender and take all back; milliseconds until dead, until free, of one look, and the blocks it had."""
    hits = node.fill()
    readers = node.readers(hits)
    stop, looks = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            for _, hit in hits:
                node.market.fetch(hit, list(range(hit.blocks))).wait()
                if stop.is_set():
                    return

    def alive() -> bool:
        start = time.monotonic()
        found = any(reader.valid(run.epoch, run.slots, run.generations).any() for reader, run in readers)
        looks.append(time.monotonic() - start)
        return found

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    assert alive()
    start = time.monotonic()
    os.kill(node.lender.pid, signal.SIGUSR1)
    while alive():
        pass
    dead = time.monotonic()
    while (room := node.free_room()) < node.room:
        if time.monotonic() - start > GIVE_UP:
            stop.set()
            raise TimeoutError(f"{(node.room - room) >> 20} MiB are not free")
    free = time.monotonic()
    stop.set()
    thread.join()
    os.kill(node.lender.pid, signal.SIGUSR2)
    blocks = sum(hit.blocks for _, hit in hits)
    return 1e3 * (dead - start), 1e3 * (free - start), 1e3 * max(looks[:1]), blocks


def measure(gb: float, times: int, gpu: int | None) -> list[dict[str, Any]]:
    """Take the memory back so many times; returns the rows."""
    with market_address() as address:
        node = Node(address, gb, gpu)
        try:
            found = [once(node) for _ in range(times)]
        finally:
            node.lender.terminate()
            node.lender.wait()
            node.market.close()
    rows = []
    for name, values in zip(("dead", "free"), list(zip(*found, strict=True))[:2], strict=True):
        p10, p50, p90, p99 = (round(float(value), 3) for value in np.percentile(values, [10, 50, 90, 99]))
        ceiling = round(float(np.median([each[2] for each in found])), 3) if name == "dead" else 0.0
        rows.append(
            {"name": name, "bytes": int(gb * 1e9), "p10": p10, "p50": p50, "p90": p90, "p99": p99, "unit": "ms"}
            | {"max": round(max(values), 3), "ceiling": ceiling, "ratio": round(ceiling / p50, 3), "goal": GOALS[name]}
            | {"times": times, "blocks": int(np.median([each[3] for each in found]))}
        )
    return rows


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-take-back.json")
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--gpu", type=int, help="lend memory of this GPU instead of the host's")
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    rows = measure(options.gb, options.times, options.gpu)
    show(rows)
    if options.write:
        facts = {
            **report.facts([] if options.gpu is None else [options.gpu]),
            "loop_ms": report.loop_ms(),
            "cores": os.cpu_count(),
        }
        report.write(options.write, "take-back", rows, ["torch"], **facts)


if __name__ == "__main__":
    main()
