"""An engine without a model: every byte of a block is derived from its tokens, so that any wrong byte is seen.

`ModelEngine` runs in this process; `Peer` runs one in a process of its own, which tests can kill.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time
from functools import partial
from typing import Any

import numpy as np
import torch
import xxhash

import kvmarket

BLOCK = 4
SLOTS = 32
FACTS = {"model": "derived from tokens", "dtype": "int16"}


def slot_bytes_of(prefix: list[int], layers: int = 2, dim: int = 24) -> np.ndarray:
    """The bytes of the block that ends `prefix`, (layers, 2, BLOCK, dim) int16."""
    seed = xxhash.xxh3_64_intdigest(np.asarray(prefix, np.int32).tobytes())
    return np.random.default_rng(seed).integers(-(2**15), 2**15, (layers, 2, BLOCK, dim), np.int16)


class ModelEngine:
    """A cache and its market; `publish` keeps the order that an owner must keep: retire, write, publish."""

    def __init__(self, address: str, device: str = "cpu", slots: int = SLOTS, **options: Any) -> None:
        fingerprint = kvmarket.Fingerprint.of(**options.pop("facts", FACTS))
        self._connect = partial(kvmarket.connect, fingerprint=fingerprint, address=address, **options)
        self.slots, self.device = slots, device
        self.allocate()
        self.join()

    def allocate(self) -> None:
        """Make a new cache in place of the old one; no slot holds a block."""
        shape = (self.slots, 2, BLOCK, 24)
        self.layers = [torch.full(shape, -1, dtype=torch.int16, device=self.device) for _ in range(2)]
        self.cache = kvmarket.PagedCache(self.layers, block_size=BLOCK)

    def join(self) -> None:
        """Join the market; also again, after `close`."""
        self.market = self._connect(self.cache)

    def write(self, slot: int, prefix: list[int]) -> None:
        """Write the bytes of the block that ends `prefix` into the slot, as a model would compute it."""
        for layer, part in zip(self.layers, slot_bytes_of(prefix), strict=True):
            layer[slot] = torch.from_numpy(part)

    def publish(self, tokens: list[int], slots: list[int], staged: bool = False) -> int:
        """Retire the slots, write the first blocks of `tokens` into them, and publish these; returns how many."""
        self.market.retire(slots)
        for block, slot in enumerate(slots):
            self.write(slot, tokens[: (block + 1) * BLOCK])
        return self.market.publish(tokens, slots, staged=staged)

    def holds(self, slot: int, prefix: list[int]) -> bool:
        """Whether the slot has exactly the bytes of the block that ends `prefix`."""
        have = [layer[slot].cpu().numpy() for layer in self.layers]
        return all(np.array_equal(a, b) for a, b in zip(have, slot_bytes_of(prefix), strict=True))

    def take(self, tokens: list[int], slots: list[int], first: int = 0) -> int:
        """Match, fetch into `slots`, and check every byte of the valid blocks; returns how many were valid."""
        hit = self.market.match(tokens)
        slots = slots[: max(0, hit.blocks - first)]
        valid = self.market.fetch(hit, slots, first).wait()
        for block in range(valid):
            assert self.holds(slots[block], tokens[: (first + block + 1) * BLOCK]), (
                f"wrong bytes in block {first + block}"
            )
        return valid

    def promise(self, tokens: list[int]) -> int:
        """Promise that this engine computes these tokens; returns the promise's number."""
        return self.market._control.promise(tokens)

    def promised(self, tokens: list[int]) -> int:
        """How many leading blocks of these tokens other engines are computing."""
        return self.market._control.promised(tokens)

    def publish_all(self, prompts: list[list[int]]) -> None:
        """Offer the first block of each prompt as fast as possible, all in slot 0, which is not written."""
        for tokens in prompts:
            self.market.retire([0])
            self.market.publish(tokens, [0])

    def hang_up(self) -> None:
        """End the connection to the service, as the kernel does for a process that is killed."""
        self.market._control._client._connection.socket._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave the market."""
        self.market.close()


def prompt(n: int, seed: int = 0) -> list[int]:
    """`n` random tokens, the same for the same seed."""
    chance = random.Random(seed)
    return [chance.randrange(2**31) for _ in range(n)]


def matched(engine: ModelEngine, tokens: list[int]) -> kvmarket.Hit:
    """Wait until all blocks of `tokens` are visible; returns the hit."""
    until(lambda: engine.market.match(tokens).blocks == len(tokens) // BLOCK)
    return engine.market.match(tokens)


def until(condition: Any, seconds: float = 20.0) -> float:
    """Wait until `condition()` is true; returns the seconds. Raises AssertionError after `seconds`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.002)
    return time.monotonic() - start


def _serve(pipe: Any, address: str, options: dict[str, Any]) -> None:
    os.environ.update(options.pop("env", {}))
    engine = ModelEngine(address, **options)
    pipe.send(os.getpid())
    while True:
        method, arguments = pipe.recv()
        pipe.send(getattr(engine, method)(*arguments))


class Peer:
    """A model engine in a process of its own."""

    def __init__(self, address: str, **options: Any) -> None:
        context = multiprocessing.get_context("forkserver")  # forks from a process with all imports, but without CUDA
        context.set_forkserver_preload(["tests.model_engine", "kvmarket.market.facade"])
        self._pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, address, options), daemon=True)
        self.process.start()
        child.close()
        self.pid = self._pipe.recv()

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.tell(method, *arguments)
            return self.hear()

        return call

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting; `hear` returns its result."""
        self._pipe.send((method, arguments))

    def hear(self) -> Any:
        """Wait for the result of the method that `tell` called."""
        return self._pipe.recv()

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.join()
