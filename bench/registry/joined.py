"""Engine processes for benchmarks of the control plane: tiny caches, and prompts that every process can make."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import kvmarket
from kvmarket.market.control import ControlHalf
from kvmarket.market.offer import Stage
from kvmarket.transport import export

BLOCK = 16
VOCABULARY = 128_000
FINGERPRINT = kvmarket.Fingerprint.of(model="benchmark")


def join(address: str, slots: int) -> kvmarket.Market:
    """Join the market at `address` with a cache of `slots` slots of a few bytes."""
    return kvmarket.connect(_cache(slots), FINGERPRINT, address=address)


def join_as_scheduler(address: str, slots: int) -> ControlHalf:
    """Make such an engine's control half, as vLLM's scheduler has it: it does not match its own offers."""
    cache = _cache(slots)
    stage = Stage(cache.layout, (export(cache.storages()),))
    return ControlHalf([stage], FINGERPRINT, address=address, finds_own=False)


def _cache(slots: int) -> kvmarket.PagedCache:
    torch.set_num_threads(1)
    return kvmarket.PagedCache([torch.zeros((slots, 2, BLOCK, 4), dtype=torch.int16)], block_size=BLOCK)


def prompt(blocks: int, *seed: int) -> NDArray[np.int32]:
    """The tokens of so many blocks, the same in every process for the same seed."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, blocks * BLOCK, dtype=np.int32)


def wait_until(moment: float) -> None:
    """Sleep until `time.monotonic()` is `moment`; return at once if that is past."""
    time.sleep(max(0.0, moment - time.monotonic()))


class Child:
    """A process that runs `target(pipe, *arguments)`, forked from a server that has imported everything."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "kvmarket.market.facade"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        """Kill the process with SIGKILL, without waiting for its end."""
        self.process.kill()


def await_all(children: list[Child]) -> list[Any]:
    """Wait for the next message of each child."""
    return [child.pipe.recv() for child in children]


@contextmanager
def market_address() -> Iterator[str]:
    """A new market's address in a folder of its own, which is removed afterwards."""
    folder = tempfile.mkdtemp(prefix="kvm-", dir="/tmp")
    try:
        yield str(Path(folder) / "s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = [
    "BLOCK",
    "Child",
    "Connection",
    "await_all",
    "join",
    "join_as_scheduler",
    "market_address",
    "prompt",
    "wait_until",
]
