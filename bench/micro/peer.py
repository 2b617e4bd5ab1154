"""Engines for the transfer benchmarks: a cache of random bytes, a market, and a model-like co-runner.

An `Engine` runs in this process, a `Peer` runs one in another process. The bytes depend only on kind and seed, so a
reader can regenerate what it must have fetched.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import kvmarket
from bench.micro.timing import GPUS, Mark, handle, on, sustained
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.choice import Forced

LAYERS, PAGE, BLOCK = 32, 65536, 16  # Llama-3.1-8B, 16 tokens: 2 MiB a block
SLOT = LAYERS * PAGE
WARM_UP = 10  # steps of a co-runner whose times do not count


def layers_of(kind: str, slots: int, device: str) -> list[torch.Tensor]:
    """An engine's layers, int16 (slots, PAGE // 2) each: "paged", or "contiguous": all layers of a slot together."""
    if kind == "paged":
        return [torch.empty((slots, PAGE // 2), dtype=torch.int16, device=device) for _ in range(LAYERS)]
    return list(torch.empty((slots, LAYERS, PAGE // 2), dtype=torch.int16, device=device).unbind(1))


def fill(layers: list[torch.Tensor], seed: int) -> None:
    """Fill the layers with random bytes that depend on the seed only."""
    for number, layer in enumerate(layers):
        generator = torch.Generator(layer.device).manual_seed(1000 * seed + number)
        bits = torch.randint(-(2**15), 2**15, layer.shape, dtype=torch.int16, device=layer.device, generator=generator)
        layer.copy_(bits)


class Engine:
    """One cache and its market."""

    def __init__(self, kind: str, slots: int, device: str, address: str, staging: int, seed: int) -> None:
        self.device = torch.device(device)
        self.layers = layers_of(kind, slots, device)
        fill(self.layers, seed)
        cache = kvmarket.PagedCache(self.layers, block_size=BLOCK)
        facts = kvmarket.Fingerprint.of(kind=kind)
        self.market = kvmarket.connect(cache, facts, address=address, staging_bytes=staging * SLOT)

    def publish(self, tokens: bytes, ids: list[int], staged: bool) -> int:
        """Offer the blocks in slots `ids` as these tokens; returns how many."""
        return self.market.publish(np.frombuffer(tokens, np.int32), ids, staged=staged)

    def matched(self, tokens: bytes, blocks: int) -> kvmarket.Hit:
        """Wait until `blocks` blocks of these tokens are visible; returns the hit."""
        array = np.frombuffer(tokens, np.int32)
        while (hit := self.market.match(array)).blocks < blocks:
            time.sleep(0.002)
        return hit

    def force(self, way: str | None, programs: int | None = None) -> None:
        """Have every fetch take this way; None for the market's own choice."""
        mover: Any = self.market._data.mover
        mover.ways.choice, mover.means.programs = Forced(way) if way else None, programs

    def contiguous(self, hit: kvmarket.Hit) -> tuple[torch.Tensor, torch.Tensor]:
        """The first segment of the pool of `hit`, mapped here, and own memory of its size: for the ceiling."""
        segment = self.source(hit).segments[0]
        return segment, torch.empty_like(segment)

    def source(self, hit: kvmarket.Hit) -> SlotArray:
        """The slots of the pool of `hit`, mapped into this process."""
        mapped = self.market._data.mappings.of(hit.pools[hit.runs[0].pool], hit.runs[0])
        assert mapped is not None
        return mapped.slots

    def fetch_for(self, seconds: float, tokens: bytes, ids: list[int], start: float) -> list[float]:
        """Fetch the same hit for `seconds`, from ``time.monotonic()`` `start` on; seconds of each fetch."""
        hit = self.matched(tokens, len(ids))
        self.market.fetch(hit, ids).wait()
        time.sleep(max(0.0, start - time.monotonic()))
        return repeat(seconds, lambda: self.market.fetch(hit, ids))

    def copy_for(self, seconds: float, tokens: bytes, blocks: int, start: float) -> list[float]:
        """Copy contiguous bytes of the hit's pool for `seconds`, from `start` on; seconds of each copy."""
        source, target = self.contiguous(self.matched(tokens, 1))
        size = blocks * SLOT

        def copy() -> Mark:
            target[:size].copy_(source[:size], non_blocking=True)
            return handle()

        with on(self.device):
            copy().wait()
            time.sleep(max(0.0, start - time.monotonic()))
            return repeat(seconds, copy)

    def co_run(self, kind: str, seconds: float, start: float) -> list[float]:
        """Run the steps of `model_like` for `seconds`, from `start` on; milliseconds of each step.

        At least `WARM_UP` and as many more, however slow the machine is; none for no seconds, only the step is made.
        """
        with on(self.device):
            replay = model_like(kind, self.device)
            time.sleep(max(0.0, start - time.monotonic()))
            steps, end = [], time.monotonic() + seconds
            while seconds and (time.monotonic() < end or len(steps) < 2 * WARM_UP):
                marks = [Mark() for _ in range(11)]
                for mark in marks[:-1]:
                    mark.record()
                    replay()
                marks[-1].record()
                marks[-1].wait()
                steps += [a.until(b) for a, b in itertools.pairwise(marks)]
        return steps

    def close(self) -> None:
        """Leave the market."""
        self.market.close()


def repeat(seconds: float, start: Callable[[], Any]) -> list[float]:
    """Run copies for so long, always two at a time; seconds of each copy."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times += [us / 1e6 for us in sustained(start, 10)]
    return times


SHAPES = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)] if GPUS else [(64, 96), (64, 64)]


@functools.cache
def model_like(kind: str, device: torch.device) -> Callable[[], None]:
    """A step of bf16 matrix products with Llama-8B shapes: "decode" (batch 32, memory-bound), "prefill" (2,048 tokens).

    It is one CUDA graph; on a CPU it is a few small products. The step is made once per kind and device.
    """
    batch, layers = (32, 14) if kind == "decode" else (2048, 2)
    weights = [[torch.randn(s, dtype=torch.bfloat16, device=device) for s in SHAPES] for _ in range(layers)]
    inputs = {rows: torch.randn(batch, rows, dtype=torch.bfloat16, device=device) for rows, _ in SHAPES}

    def step() -> None:
        for layer in weights:
            for weight in layer:
                inputs[weight.shape[0]] @ weight

    if device.type == "cpu":
        return step
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_memory: object = (weights, inputs)) -> None:
        graph.replay()

    return replay


def _serve(pipe: Any, arguments: tuple[Any, ...]) -> None:
    engine = Engine(*arguments)
    pipe.send(os.getpid())
    while True:
        method, given = pipe.recv()
        if method == "exit":
            engine.close()
            return
        pipe.send(getattr(engine, method)(*given))


class Peer:
    """An `Engine` in another process. `ask` waits for the answer, `tell` does not."""

    def __init__(self, *arguments: Any) -> None:
        self._pipe, child = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(child, arguments))
        self._process.start()
        child.close()
        self._pipe.recv()

    def tell(self, method: str, *given: Any) -> None:
        """Have the engine run a method; `answer` returns the result."""
        self._pipe.send((method, given))

    def answer(self) -> Any:
        """Wait for the result of the oldest `tell`."""
        return self._pipe.recv()

    def ask(self, method: str, *given: Any) -> Any:
        """Have the engine run a method, and return the result."""
        self.tell(method, *given)
        return self.answer()

    def close(self) -> None:
        """End the engine and its process."""
        self.tell("exit")
        self._process.join()
