"""``make bench``: copies of 64 MiB of pages of every size, beside one contiguous copy and two baselines.

A block has two layers with a page each; sizes go from those of tensor-parallel shards, fp8 and MLA caches to those of
large blocks. Copies are within a GPU, and from a peer if there are two GPUs; a CPU runs the torch reference on 1 MiB.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.test_copy import DEVICE, timed
from kvmarket import PagedCache
from kvmarket.kernels import copy_blocks
from kvmarket.layout.paged import SlotArray
from kvmarket.transport import enable_peer_access
from kvmarket.ways.gpu import copy_engine

TOTAL = 64 << 20 if DEVICE == "cuda" else 1 << 20
OWNERS = ["cuda:0", "cuda:1"][: torch.cuda.device_count()] if DEVICE == "cuda" else ["cpu"]
PAGES = [2048 << step for step in range(8)]  # 2 KiB to 256 KiB
Pair = tuple[SlotArray, SlotArray, torch.Tensor, torch.Tensor]


def pair(page: int, owner: str) -> Pair:
    """Make source and destination, and random slots of each."""
    reader = "cuda:0" if DEVICE == "cuda" else "cpu"
    blocks = TOTAL // page // 2
    arrays = []
    for device in (owner, reader):
        layers = [torch.randint(0, 256, (2 * blocks, page), dtype=torch.uint8, device=device) for _ in range(2)]
        arrays.append(PagedCache(layers, block_size=16).slot_array())
    if owner != reader:
        enable_peer_access(arrays[0].segments[0], arrays[1].device)
    chance = random.Random(page)
    slots = [torch.tensor(chance.sample(range(2 * blocks), blocks), device=reader) for _ in range(2)]
    return arrays[0], arrays[1], slots[0], slots[1]


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("page", PAGES)
def test_pull(benchmark: BenchmarkFixture, page: int, owner: str) -> None:
    """The kernel that a fetch by `pull` runs."""
    source, destination, slots, places = pair(page, owner)
    timed(benchmark, lambda: copy_blocks(source, slots, destination, places), TOTAL)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("page", PAGES)
def test_baseline_index_select(benchmark: BenchmarkFixture, page: int, owner: str) -> None:
    """Gather and scatter by torch, layer by layer; from a peer through a buffer on the peer."""
    source, destination, slots, places = pair(page, owner)
    theirs = slots.to(owner)

    def copy() -> None:
        for view, own in zip(source.part_views(), destination.part_views(), strict=True):
            own.index_copy_(0, places, view.index_select(0, theirs).to(own.device))

    timed(benchmark, copy, TOTAL)


@pytest.mark.skipif(DEVICE != "cuda", reason="the copy engine is a GPU's")
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("page", PAGES)
def test_baseline_memcpy_batch(benchmark: BenchmarkFixture, page: int, owner: str) -> None:
    """One call of ``cudaMemcpyBatchAsync`` for all pages."""
    source, destination, slots, places = pair(page, owner)
    addresses = [
        np.concatenate([view.data_ptr() + ids.cpu().numpy() * page for view in array.part_views()]).astype(np.uint64)
        for array, ids in ((source, slots), (destination, places))
    ]
    sizes = np.full(len(addresses[0]), page, np.uint64)
    stream = torch.cuda.Stream()
    timed(benchmark, lambda: copy_engine.copy_ranges(addresses[1], addresses[0], sizes, stream.cuda_stream), TOTAL)


@pytest.mark.parametrize("owner", OWNERS)
def test_contiguous(benchmark: BenchmarkFixture, owner: str) -> None:
    """The ceiling: one contiguous copy of as many bytes."""
    payload = torch.randint(0, 256, (TOTAL,), dtype=torch.uint8, device=owner)
    target = torch.empty_like(payload, device="cuda:0" if DEVICE == "cuda" else "cpu")
    timed(benchmark, lambda: target.copy_(payload), TOTAL)
