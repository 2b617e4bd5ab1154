"""``make bench``: what a copy of blocks between two arrays costs, beside one contiguous copy of as many bytes.

Both arrays are on one device: a GPU runs the kernels, a CPU the torch reference. The cases are those of the tests.
`extra_info` has the payload in bytes, counted once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.forms import CASES, Case
from kvmarket.kernels import copy_blocks

os.environ.pop("TRITON_INTERPRET", None)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS, BLOCKS = (32, 256) if DEVICE == "cuda" else (4, 16)


def timed(benchmark: BenchmarkFixture, copy: Callable[[], None], nbytes: int) -> None:
    """Time `copy` until the device has finished it."""

    def run() -> None:
        copy()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info["bytes"] = nbytes
    benchmark.pedantic(run, warmup_rounds=3, rounds=20)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_blocks(benchmark: BenchmarkFixture, case: Case) -> None:
    """Random slots to random slots."""
    source, destination = case.arrays(LAYERS, BLOCKS, DEVICE)
    chance = random.Random(1)
    slots = [torch.tensor(chance.sample(range(BLOCKS), BLOCKS), device=DEVICE) for _ in range(2)]
    nbytes = BLOCKS * source.layout.slot_bytes
    timed(benchmark, lambda: copy_blocks(source, slots[0], destination, slots[1]), nbytes)


def test_contiguous(benchmark: BenchmarkFixture) -> None:
    """The ceiling: one contiguous copy of the bytes that the Llama cases move."""
    source, _ = CASES[0].arrays(LAYERS, 1, DEVICE)
    payload = torch.randint(0, 256, (BLOCKS * source.layout.slot_bytes,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(payload)
    timed(benchmark, lambda: target.copy_(payload), payload.numel())
